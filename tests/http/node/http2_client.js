// Node's HTTP/2 client: node http2_client.js ADDRESS PORT COUNT. Prints its counts as JSON.
"use strict";
const http2 = require("http2");
const [address, port, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const host = address.includes(":") ? `[${address}]` : address;
const total = { requests: 0, answered: 0 };
const session = http2.connect(`http://${host}:${port}`, { settings: { enablePush: false } });

// One request; resolves when its stream is closed. `after` may reset it at some stage.
function ask(headers, body, after) {
  return new Promise((resolve) => {
    total.requests++;
    const stream = session.request(headers, { endStream: body === undefined });
    let seen = false;
    stream.on("error", () => {});
    stream.on("response", () => { seen = true; if (after === "response") stream.close(http2.constants.NGHTTP2_CANCEL); });
    stream.on("data", () => { if (after === "data") stream.close(http2.constants.NGHTTP2_CANCEL); });
    stream.on("close", () => { if (seen && stream.rstCode === 0) total.answered++; resolve(); });
    if (body !== undefined) {
      for (const piece of body) stream.write(piece);
      if (after === "body") setTimeout(() => stream.close(http2.constants.NGHTTP2_CANCEL), 30); else stream.end();
    }
    if (after === "head") setTimeout(() => stream.close(http2.constants.NGHTTP2_CANCEL), 30);
  });
}

const get = (path, more) => ({ ":method": "GET", ":path": path, ...more });
const post = (path, more) => ({ ":method": "POST", ":path": path, ...more });

async function main() {
  const plans = [
    (n) => ask(get(`/size/100/n${n}?q=${n}`, { "x-changing": String(n) })),
    (n) => ask(post(`/echo/n${n}`), [Buffer.alloc(3000, 1)]),
    (n) => ask(get(`/chunked/4/1000/n${n}`)),
    (n) => ask({ ":method": "HEAD", ":path": `/size/10/n${n}` }),
    (n) => ask(get(`/status/204/n${n}`)),
    (n) => ask(get(`/status/500/n${n}`, { cookie: ["a=b", "c=d"] })),
    (n) => ask(get(`/trailers/2/100/n${n}`)),
  ];
  const special = [
    () => ask(get("/slow/300/reset-head"), undefined, "head"),
    () => ask(get("/drip/50/20/reset-response"), undefined, "response"),
    () => ask(get("/drip/50/20/reset-data"), undefined, "data"),
    // Its end goes out with the reset: a server that is quick has an answer that may or may not be sent.
    () => ask(post("/slow/300/reset-body"), [Buffer.alloc(100, 2)], "body"),
    () => ask(get("/size/3000000/large")),
    () => ask(post("/size/3/upload"), [Buffer.alloc(1000000, 3)]),
    () => ask(get("/large-header/9000/frames")),
    () => ask(get("/size/2/continuation", { "x-long": "y".repeat(20000) })),
    () => ask(get("/reset/by-server")),
  ];
  // nginx waits for more after an interim response of its backend.
  if (process.argv[5] !== "proxied") special.push(() => ask(get("/hint/interim")), () => ask(get("/refuse/by-server")));
  await ask(get("/reset/by-server")); // alone, so that the server has nothing else to write
  await Promise.all(special.map((one) => one()));
  const open = new Set();
  for (let n = 0; total.requests < count; n++) {
    const one = plans[n % plans.length](n).then(() => open.delete(one));
    open.add(one);
    if (open.size >= 100) await Promise.race(open);
  }
  await Promise.all(open);
  await new Promise((resolve) => session.close(resolve));
  console.log(JSON.stringify(total));
}
setTimeout(() => process.exit(3), 100000).unref();
main();
