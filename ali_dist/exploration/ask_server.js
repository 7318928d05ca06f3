// What the page asks is answered by the server that sent it.
"use strict";
const askExplorer = (() => {
  const token = new URLSearchParams(location.search).get("token") || "";

  async function post(path, body, headers) {
    let response;
    try {
      response = await fetch(path, { method: "POST", body, headers: { ...headers, "X-Ali-Token": token } });
    } catch {
      throw new Error("The explorer does not answer: start it again, and open the address that it prints.");
    }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  // A file is sent as it is, and everything else as JSON.
  return (path, content = {}) => {
    if (!content.file) return post(path, JSON.stringify(content), { "Content-Type": "application/json" });
    return post(path, content.file, content.c ? { "X-Ali-Condition": JSON.stringify(content.c) } : {});
  };
})();
