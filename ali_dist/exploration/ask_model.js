// What the page asks is answered by the networks that it carries, in the browser: nothing goes to another machine.
// Pictures are planes of numbers, one for each channel, [C, H, W], as the networks take and give them.
"use strict";
const askExplorer = (() => {
  const facts = JSON.parse(document.getElementById("model-facts").textContent);
  const [channels, side] = facts.shape;

  // ---- what the page carries

  async function unpack(name) {
    const holder = document.getElementById(`packed-${name}`);
    const letters = atob(holder.textContent);
    holder.remove(); // it is needed once
    const bytes = new Uint8Array(letters.length);
    for (let place = 0; place < letters.length; place += 1) bytes[place] = letters.charCodeAt(place);
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(unpacked).arrayBuffer();
  }

  // A page that was opened as a file may import no other file, but it may import what it made itself.
  async function scriptUrl(name) {
    return URL.createObjectURL(new Blob([await unpack(name)], { type: "text/javascript" }));
  }

  async function load() {
    const ort = await import(await scriptUrl("runtime"));
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1; // threads need headers, which a file has not
    ort.env.wasm.wasmPaths = { mjs: await scriptUrl("loader") };
    ort.env.wasm.wasmBinary = await unpack("wasm");
    const open = async (name) => ort.InferenceSession.create(new Uint8Array(await unpack(name)));
    const encoder = await open("encoder");
    const decoder = await open("decoder");
    if (!facts.pool) return { ort, encoder, decoder };
    const images = new Uint8Array(await unpack("images"));
    return { ort, encoder, decoder, images, features: new Float32Array(await unpack("features")) };
  }

  const status = document.querySelector(".status");
  const usualStatus = status.textContent;
  status.textContent = "starting the networks …";
  const loading = load();
  loading.then(() => { status.textContent = usualStatus; }, () => { status.textContent = "not running"; });

  // ---- the networks

  async function run({ ort }, session, name, rows, c) {
    const asTensor = (lists) => new ort.Tensor("float32", Float32Array.from(lists.flat()), [lists.length, lists[0].length]);
    const feeds = { [name]: name === "x" ? new ort.Tensor("float32", rows[0], [1, ...facts.shape]) : asTensor(rows) };
    if (c) feeds.condition = asTensor(c);
    const outputs = await session.run(feeds);
    const { data } = outputs[session.outputNames[0]];
    const size = data.length / rows.length;
    return rows.map((_, row) => data.slice(row * size, (row + 1) * size));
  }

  const decode = (model, z, c) => run(model, model.decoder, "z", z, c);

  async function encode(model, x, c) {
    const [features] = await run(model, model.encoder, "x", [x], c && [c]);
    return features; // z = µ(x) comes first in them
  }

  // ---- resizing, as Pillow and PyTorch do it: a separable filter, widened where pictures shrink

  const sinc = (t) => (t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t));
  const TRIANGLE = { reach: 1, at: (t) => Math.max(0, 1 - Math.abs(t)) };
  const LANCZOS = { reach: 3, at: (t) => (Math.abs(t) < 3 ? sinc(t) * sinc(t / 3) : 0) };
  const CUBIC = {
    reach: 2,
    at: (t) => {
      const d = Math.abs(t);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
    },
  };

  // For each of `to` numbers, the weights of those among `from` that it is made of, and where these begin.
  function makeWindows(from, to, kernel) {
    const scale = from / to;
    const widening = Math.max(scale, 1);
    const reach = kernel.reach * widening;
    return Array.from({ length: to }, (_, place) => {
      const center = (place + 0.5) * scale;
      const first = Math.max(0, Math.trunc(center - reach + 0.5));
      const end = Math.min(from, Math.trunc(center + reach + 0.5));
      const weights = Array.from({ length: end - first }, (_, k) => kernel.at((first + k - center + 0.5) / widening));
      const sum = weights.reduce((a, b) => a + b);
      return { first, weights: weights.map((weight) => weight / sum) };
    });
  }

  // Rows of `from` numbers become columns of `to` numbers. What is made is of the same kind: bytes stay bytes.
  function resizeRows(x, rows, from, to, kernel) {
    const windows = makeWindows(from, to, kernel);
    const y = new x.constructor(rows * to);
    for (let row = 0; row < rows; row += 1) {
      for (let place = 0; place < to; place += 1) {
        const { first, weights } = windows[place];
        let sum = 0;
        for (let k = 0; k < weights.length; k += 1) sum += weights[k] * x[row * from + first + k];
        y[place * rows + row] = sum;
      }
    }
    return y;
  }

  function resizePlane(x, from, to, kernel) {
    return from === to ? x : resizeRows(resizeRows(x, from, from, to, kernel), to, from, to, kernel);
  }

  // ---- pictures in and out

  const planesOf = (x) => Array.from({ length: channels }, (_, k) => x.subarray(k * side * side, (k + 1) * side * side));

  // Values from 0 to 1 as the `data:` url of a PNG, enlarged to about `wanted` pixels a side.
  function pictureUrl(x, wanted) {
    const large = side * Math.max(1, Math.round(wanted / side));
    const planes = planesOf(Uint8ClampedArray.from(x, (value) => value * 255)).map((plane) =>
      resizePlane(plane, side, large, CUBIC));
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = large;
    const pixels = new ImageData(large, large);
    for (let place = 0; place < large * large; place += 1) {
      for (let k = 0; k < 3; k += 1) pixels.data[4 * place + k] = planes[k % channels][place];
      pixels.data[4 * place + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.toDataURL("image/png");
  }

  const cannotBeUsed = (reason) => new Error(`The picture cannot be used (${reason}): give another one.`);

  // The middle square of a file, upright and on white, as planes of bytes.
  async function readSquare(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    } catch {
      throw cannotBeUsed("this browser cannot decode it, or it is cut short");
    }
    const { width, height } = bitmap;
    if (width * height > facts.mostPixels) {
      throw cannotBeUsed(`it has ${width}x${height} pixels, but at most ${facts.mostPixels / 1e6} million are taken`);
    }
    const edge = Math.min(width, height);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = edge;
    let rgba;
    try {
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.fillStyle = "white";
      context.fillRect(0, 0, edge, edge);
      context.drawImage(bitmap, -Math.floor((width - edge) / 2), -Math.floor((height - edge) / 2));
      rgba = context.getImageData(0, 0, edge, edge).data;
    } catch {
      throw cannotBeUsed(`with ${width}x${height} pixels it is too large for this browser`);
    }
    bitmap.close();
    const planes = Array.from({ length: channels }, () => new Uint8ClampedArray(edge * edge));
    for (let place = 0; place < edge * edge; place += 1) {
      const [red, green, blue] = [rgba[4 * place], rgba[4 * place + 1], rgba[4 * place + 2]];
      if (channels === 1) planes[0][place] = 0.299 * red + 0.587 * green + 0.114 * blue;
      else [planes[0][place], planes[1][place], planes[2][place]] = [red, green, blue];
    }
    return { edge, planes };
  }

  // A file as the networks take it: reduced to the size of the data, and then to theirs, where that is smaller.
  async function readPicture(file) {
    const { edge, planes } = await readSquare(file);
    const x = new Float32Array(channels * side * side);
    planes.forEach((plane, k) => {
      const stored = resizePlane(plane, edge, facts.storedSide, LANCZOS);
      const unit = Float32Array.from(stored, (value) => value / 255);
      x.set(resizePlane(unit, facts.storedSide, side, TRIANGLE), k * side * side);
    });
    return x;
  }

  function poolImage(model, place) {
    const size = channels * side * side;
    return Float32Array.from(model.images.subarray(place * size, (place + 1) * size), (value) => value / 255);
  }

  function poolFeatures(model, place) {
    const size = model.features.length / facts.pool.names.length;
    return model.features.subarray(place * size, (place + 1) * size);
  }

  // ---- answers

  async function show(model, x, features, c) {
    const z = [...features.slice(0, facts.latentSize)];
    const [again] = await decode(model, [z], c && [c]);
    return {
      z,
      c,
      image: pictureUrl(x, facts.large),
      reconstruction: pictureUrl(again, facts.large),
      error: x.reduce((sum, value, place) => sum + (value - again[place]) ** 2, 0) / x.length,
    };
  }

  const gaussian = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const mix = (a, b, shareOfA, shareOfB) => a.map((value, place) => shareOfA * value + shareOfB * b[place]);

  // The angle between two latents; 0 where it is not defined, so that a straight line is taken.
  function angleBetween(a, b) {
    const dot = (u, v) => u.reduce((sum, value, place) => sum + value * v[place], 0);
    const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
    const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
    return Math.sin(angle) > 1e-6 ? angle : 0;
  }

  const answers = {
    "/decode": async (model, { z, c }) => ({ image: pictureUrl((await decode(model, [z], c && [c]))[0], facts.large) }),

    "/draw": async () => ({ z: Array.from({ length: facts.latentSize }, gaussian) }),

    "/encode": async (model, { file, c }) => {
      const x = await readPicture(file);
      return show(model, x, await encode(model, x, c), c);
    },

    "/image": async (model, { place = Math.floor(Math.random() * facts.pool.names.length) }) => {
      const c = facts.pool.conditions && facts.pool.conditions[place];
      const shown = await show(model, poolImage(model, place), poolFeatures(model, place), c);
      return { ...shown, name: facts.pool.names[place] };
    },

    "/walk": async (model, { first, last, steps, spherical }) => {
      const angle = spherical ? angleBetween(first.z, last.z) : 0;
      const shares = Array.from({ length: steps }, (_, step) => step / (steps - 1));
      const z = shares.map((t) =>
        angle
          ? mix(first.z, last.z, Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle))
          : mix(first.z, last.z, 1 - t, t));
      const c = first.c && last.c ? shares.map((t) => mix(first.c, last.c, 1 - t, t)) : null;
      return { images: (await decode(model, z, c)).map((x) => pictureUrl(x, facts.small)) };
    },

    "/neighbors": async (model, { z, c }) => {
      const [x] = await decode(model, [z], c && [c]);
      const features = await encode(model, x, c);
      const found = facts.pool.names.map((name, place) => {
        const others = poolFeatures(model, place);
        const sum = features.reduce((total, value, k) => total + (value - others[k]) ** 2, 0);
        return { place, name, distance: Math.sqrt(sum / features.length) };
      });
      const nearest = found.sort((a, b) => a.distance - b.distance).slice(0, facts.neighbors);
      return { neighbors: nearest.map((one) => ({ ...one, image: pictureUrl(poolImage(model, one.place), facts.small) })) };
    },
  };

  let last = Promise.resolve();

  return async (path, content = {}) => {
    let model;
    try {
      model = await loading;
    } catch (error) {
      throw new Error(`The networks do not run in this browser (${error.message}): take a newer one.`);
    }
    // One after the other, because a session computes one thing at a time.
    const answer = last.then(() => answers[path](model, content));
    last = answer.catch(() => {});
    return answer;
  };
})();
