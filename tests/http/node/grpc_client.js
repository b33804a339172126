// @grpc/grpc-js as a client: node grpc_client.js ADDRESS PORT COUNT [CERTIFICATE]. Prints its
// counts as JSON.
"use strict";
const fs = require("fs");
const path = require("path");
const grpc = require(path.join(process.env.NODE_PATH, "@grpc/grpc-js"));
const { methods, status } = require("./grpc_methods.js");
const [address, port, count, certificate] = [process.argv[2], process.argv[3], Number(process.argv[4]), process.argv[5]];
const host = address.includes(":") ? `[${address}]` : address;
const Client = grpc.makeGenericClientConstructor(methods, "podwire.test.Echo");
const credentials = certificate ? grpc.credentials.createSsl(fs.readFileSync(certificate)) : grpc.credentials.createInsecure();
const named = certificate ? { "grpc.ssl_target_name_override": "localhost" } : {};
const client = new Client(`${host}:${port}`, credentials, { "grpc.max_receive_message_length": -1, "grpc.enable_retries": 0, ...named });
const total = { requests: 0, answered: 0 };
const metadata = (plan) => {
  const given = new grpc.Metadata();
  given.set("x-test", JSON.stringify(plan).replace(/[^ -~]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")));
  given.set("x-test-id", `node-${total.requests++}`);
  return given;
};
const options = (ms) => ({ deadline: Date.now() + (ms || 30000) });
const over = (error) => { if (!error) total.answered++; };
const unary = (size, plan, ms) => new Promise((resolve) => client.Unary(Buffer.alloc(size, 117), metadata(plan || {}), options(ms), (error) => { over(error); resolve(); }));
const read = (plan, cancelAfter) => new Promise((resolve) => {
  const call = client.ServerStream(Buffer.from("s"), metadata(plan), options());
  let seen = 0;
  let ended = false;
  call.on("data", () => { if (++seen === cancelAfter) call.cancel(); });
  call.on("error", () => {});
  call.on("end", () => { ended = true; });
  call.on("status", (told) => { over(told.code !== status.OK); resolve(); });
});
const write = (sizes, plan) => new Promise((resolve) => {
  const call = client.ClientStream(metadata(plan || {}), options(), (error) => { over(error); resolve(); });
  for (const size of sizes) call.write(Buffer.alloc(size, 99));
  call.end();
});
const both = (sizes) => new Promise((resolve) => {
  const call = client.Bidi(metadata({}), options());
  call.on("data", () => {});
  call.on("error", () => {});
  call.on("status", (told) => { over(told.code !== status.OK); resolve(); });
  for (const size of sizes) call.write(Buffer.alloc(size, 98));
  call.end();
});

async function main() {
  await unary(10);
  await unary(0);
  await unary(3, { code: 5 });
  await unary(3, { code: 13, message: "with ünicode and spaces" });
  await unary(3, { late: true }, 1000);
  await unary(1000000);
  await unary(4, { size: 2000000 });
  await read({ count: 50, size: 1000 });
  await read({ count: 0 });
  await read({ count: 3, code: 5 });
  await read({ count: 1000, size: 100, delay: 5 }, 3);
  await write([10, 0, 70000, 5]);
  await write([], { code: 5 });
  await write([]);
  await both([1, 200, 30000]);
  await both([]);
  const open = new Set();
  while (total.requests < count) {
    const one = unary(50).then(() => open.delete(one));
    open.add(one);
    if (open.size >= 100) await Promise.race(open);
  }
  await Promise.all(open);
  client.close();
  console.log(JSON.stringify(total));
}
setTimeout(() => process.exit(3), 100000).unref();
main();
