// The page holds the point that is shown, z and c, and asks what belongs to it: askExplorer(path, content) resolves to an
// answer, or fails with a sentence for the user. Whoever answers keeps nothing.
"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const find = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);

  const now = { z: [...facts.center], c: facts.condition };
  const ends = { first: null, last: null };
  const MOVED = ", then moved by sliders";

  // ---- asking

  const troubles = new Map(); // sentences, by what they are about

  function complain(about, sentence) {
    troubles.set(about, sentence);
    find("trouble").textContent = [...new Set(troubles.values())].join(" ").trim();
  }

  // One request at a time: while one is under way, only the newest of those that follow is kept.
  function newestOnly(about, work) {
    let isBusy = false;
    let isWanted = false;
    return async () => {
      isWanted = true;
      if (isBusy) return;
      isBusy = true;
      while (isWanted) {
        isWanted = false;
        try {
          await work();
          complain(about, "");
        } catch (error) {
          complain(about, error.message);
        }
      }
      isBusy = false;
    };
  }

  function afterQuiet(work, milliseconds) {
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(work, milliseconds);
    };
  }

  // ---- the picture that is shown

  const drawPicture = newestOnly("decode", async () => {
    find("picture").src = (await askExplorer("/decode", now)).image;
  });
  const drawNeighbors = afterQuiet(newestOnly("neighbors", async () => {
    const found = (await askExplorer("/neighbors", now)).neighbors;
    find("neighbors").replaceChildren(...found.map(neighborFigure));
  }), 300);

  function drawAgain() {
    complain("file", "");
    drawPicture();
    if (facts.hasData) drawNeighbors();
  }

  function goTo(z, c, source) {
    now.z = [...z];
    if (c) now.c = [...c];
    find("source").textContent = source;
    for (const slider of all("[data-label]")) setSlider(slider, 0);
    showComponents();
    showCondition();
    drawAgain();
  }

  // ---- sliders

  function setSlider(slider, value) {
    slider.value = value;
    slider.dataset.value = value;
    const unit = slider.dataset.component === undefined ? "" : " σ";
    slider.closest(".slider").querySelector("output").textContent =
      (value < -0.005 ? "−" : value > 0.005 ? "+" : "") + Math.abs(value).toFixed(Math.abs(value) < 10 ? 2 : 1) + unit;
  }

  function showComponents() {
    const offset = now.z.map((value, place) => value - facts.center[place]);
    for (const slider of all("[data-component]")) {
      const place = Number(slider.dataset.component);
      setSlider(slider, dot(offset, facts.vectors[place]) / facts.std[place]);
    }
  }

  function move(vector, distance) {
    now.z = now.z.map((value, place) => value + distance * vector[place]);
    const source = find("source").textContent; // a seed, or an image, no longer gives what is shown
    if (!source.endsWith(MOVED)) find("source").textContent = source + MOVED;
    drawAgain();
  }

  for (const slider of all("[data-component]")) {
    slider.addEventListener("input", () => {
      const place = Number(slider.dataset.component);
      const change = slider.valueAsNumber - Number(slider.dataset.value);
      setSlider(slider, slider.valueAsNumber);
      move(facts.vectors[place], change * facts.std[place]);
    });
  }
  for (const slider of all("[data-label]")) {
    slider.addEventListener("input", () => {
      const change = slider.valueAsNumber - Number(slider.dataset.value);
      setSlider(slider, slider.valueAsNumber);
      move(facts.labels[Number(slider.dataset.label)], change);
      showComponents();
    });
  }

  // ---- conditions

  function showCondition() {
    if (find("class")) find("class").value = now.c.indexOf(Math.max(...now.c));
    for (const box of all("[data-attribute]")) box.checked = now.c[Number(box.dataset.attribute)] > 0.5;
  }

  if (find("class")) {
    find("class").addEventListener("change", () => {
      now.c = now.c.map((_, place) => (place === Number(find("class").value) ? 1 : 0));
      drawAgain();
    });
  }
  for (const box of all("[data-attribute]")) {
    box.addEventListener("change", () => {
      now.c = now.c.map((value, place) => (place === Number(box.dataset.attribute) ? Number(box.checked) : value));
      drawAgain();
    });
  }

  // ---- pictures from files and from the data

  let turn = 0; // of what was asked for last: an answer that comes after a newer question is dropped

  async function take(question, use) {
    turn += 1;
    const mine = turn;
    try {
      const answer = await question();
      if (mine === turn) use(answer);
    } catch (error) {
      if (mine === turn) complain("file", error.message);
    }
  }

  function encodeFile(file) {
    if (file.size > facts.mostBytes) {
      const most = facts.mostBytes.toLocaleString("en");
      throw new Error(`The picture has ${file.size.toLocaleString("en")} bytes, but at most ${most} are taken: reduce it.`);
    }
    return askExplorer("/encode", { file, c: now.c });
  }

  function showPair(answer, name) {
    find("original").src = answer.image;
    find("reconstruction").src = answer.reconstruction;
    find("pair-text").textContent = `${name}: mean squared error ${answer.error.toFixed(4)}, of pixels from 0 to 1`;
    find("pair").hidden = false;
    goTo(answer.z, answer.c, `z = µ(x) of ${name}`);
  }

  function takeFile(file) {
    const name = (file.name || "your picture") + (now.c ? " under the condition that was chosen" : "");
    take(() => encodeFile(file), (answer) => showPair(answer, name));
  }

  const takeImage = (place) =>
    take(() => askExplorer("/image", place === undefined ? {} : { place }),
      (answer) => showPair(answer, answer.name ? `an image of the data (${answer.name})` : "an image of the data"));

  const decoded = async (point) => ({ ...point, image: (await askExplorer("/decode", point)).image });
  const asEnd = (answer) => ({ z: answer.z, c: answer.c, image: answer.image });
  const endTurns = { first: 0, last: 0 };

  async function fillEnd(name, question) {
    endTurns[name] += 1;
    const mine = endTurns[name];
    try {
      const end = await question();
      if (mine !== endTurns[name]) return;
      ends[name] = end;
      find(`${name}-picture`).src = end.image;
      complain("file", "");
      drawWalk();
    } catch (error) {
      complain("file", error.message);
    }
  }

  async function anyEnd() {
    if (facts.hasData) return asEnd(await askExplorer("/image"));
    return decoded({ z: (await askExplorer("/draw")).z, c: now.c });
  }

  function takesDrops(area, use) {
    area.addEventListener("dragover", (event) => {
      event.preventDefault();
      event.stopPropagation();
      area.classList.add("over");
    });
    area.addEventListener("dragleave", () => area.classList.remove("over"));
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      area.classList.remove("over");
      if (event.dataTransfer.files.length) use(event.dataTransfer.files[0]);
      else complain("file", "That was no file: save the picture first, and drop its file.");
    });
  }

  function takesChoice(input, use) {
    input.addEventListener("change", () => {
      if (input.files.length) use(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
  }

  // ---- a walk

  const drawWalk = newestOnly("walk", async () => {
    if (!ends.first || !ends.last) return;
    const point = (end) => ({ z: end.z, c: end.c });
    const answer = await askExplorer("/walk", {
      first: point(ends.first),
      last: point(ends.last),
      steps: find("steps").valueAsNumber,
      spherical: find("spherical").checked,
    });
    find("strip").replaceChildren(...answer.images.map((image, place) => {
      const picture = document.createElement("img");
      picture.className = "picture";
      picture.src = image;
      picture.alt = `Picture ${place + 1} of ${answer.images.length} on the way`;
      return picture;
    }));
  });

  // ---- neighbors

  function neighborFigure(neighbor) {
    const picture = document.createElement("img");
    picture.className = "picture";
    picture.src = neighbor.image;
    picture.alt = "";
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Go to this image";
    button.append(picture);
    button.setAttribute("aria-label", `Go to ${neighbor.name || "this image"}`);
    button.addEventListener("click", () => takeImage(neighbor.place));
    const text = document.createElement("figcaption");
    text.textContent = [neighbor.name, neighbor.distance.toFixed(3)].filter(Boolean).join(" · ");
    const figure = document.createElement("figure");
    figure.className = "neighbor";
    figure.append(button, text);
    return figure;
  }

  // ---- buttons

  find("random").addEventListener("click", () =>
    take(() => askExplorer("/draw"), (answer) => {
      const seed = answer.seed === undefined ? "" : `, seed ${answer.seed}`;
      goTo(answer.z, null, `z from the prior${seed}`);
    }));
  find("reset").addEventListener("click", () => {
    turn += 1;
    goTo(facts.center, facts.condition, facts.centerName);
  });
  if (find("any-image")) find("any-image").addEventListener("click", () => takeImage());
  takesChoice(find("file"), takeFile);
  takesDrops(find("now"), takeFile);
  takesDrops(document.body, takeFile);
  for (const name of ["first", "last"]) {
    const fillFromFile = (file) => fillEnd(name, async () => asEnd(await encodeFile(file)));
    takesChoice(find(`${name}-file`), fillFromFile);
    takesDrops(find(`${name}-slot`), fillFromFile);
    find(`${name}-current`).addEventListener("click", () => fillEnd(name, () => decoded(now)));
    find(`${name}-other`).addEventListener("click", () => fillEnd(name, anyEnd));
    fillEnd(name, anyEnd);
  }
  find("steps").addEventListener("input", () => {
    setSlider(find("steps"), find("steps").valueAsNumber);
    find("steps").closest(".slider").querySelector("output").textContent = find("steps").value;
    drawWalk();
  });
  find("spherical").addEventListener("change", drawWalk);

  goTo(facts.center, facts.condition, facts.centerName);
})();
