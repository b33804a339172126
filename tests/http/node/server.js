// The Node.js servers of the traffic suite: node server.js KIND ADDRESS PORT LOG [CERTIFICATE KEY]
// KIND is http, http2 or grpc. A line of JSON per request goes to LOG when it is over; "ready"
// to standard output when the server listens. SIGTERM ends it.
"use strict";
const fs = require("fs");
const http = require("http");
const http2 = require("http2");
const path = require("path");

const [kind, address, port, logPath, certificate, key] = process.argv.slice(2);
const log = fs.openSync(logPath, "a");
const note = (line) => fs.writeSync(log, JSON.stringify(line) + "\n");
const ready = () => fs.writeSync(1, "ready\n");
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
process.on("SIGTERM", () => process.exit(0));

let asked = 0;
function* untilAsked(size) {
  const before = asked;
  while (asked === before) yield size;
}

// What both kinds of HTTP answer, by the first part of the path; returns content by pieces.
function plan(url) {
  const [, what, first, second] = url.split("?")[0].split("/");
  const count = Number(first) || 0;
  if (what === "chunked" || what === "trailers" || what === "unframed")
    return { pieces: Array(count).fill(Number(second)), trailers: what === "trailers", unframed: what === "unframed" };
  if (what === "drip") return { pieces: Array(count).fill(64), pause: Number(second) };
  if (what === "held") return { pieces: untilAsked(64), pause: count };
  if (what === "slow") return { delay: count, size: 16 };
  if (what === "size") return { size: count };
  if (what === "status") return { status: count, size: [204, 304].includes(count) ? undefined : 3 };
  if (what === "hint") return { hint: true, size: 5 };
  if (what === "reset") return { reset: true, pieces: [1000] };
  if (what === "refuse") return { refuse: true };
  if (what === "echo") return { echo: true };
  if (what === "large-header") return { size: 2, header: "h".repeat(count) };
  return { size: 2 };
}

async function answerHttp(request, response, continued = false) {
  const { url, method } = request;
  asked++;
  const line = { protocol: `HTTP/${request.httpVersion}`, port: request.socket.firstPort, method, uri: url, received: 0, sent: 0 };
  const todo = plan(url);
  let finished = false;
  const over = (completed) => {
    if (finished) return;
    finished = true;
    note({ ...line, interim: continued ? 25 : 0,  status: response.headersSent ? response.statusCode : 0, completed, header: response._header ? response._header.length : 0 });
  };
  response.on("finish", () => over(true));
  response.on("close", () => over(false));
  request.on("error", () => {});
  const write = (data) => { line.sent += method === "HEAD" ? 0 : data.length; return response.write(data); };
  if (todo.echo) {
    response.writeHead(200, { "x-length": request.headers["content-length"] || "chunked" });
    request.on("data", (data) => {
      line.received += data.length;
      if (!write(data)) { request.pause(); response.once("drain", () => request.resume()); }
    });
    request.on("end", () => response.end());
    return;
  }
  try {
    for await (const data of request) line.received += data.length;
  } catch {
    return; // left in the middle of the body; "close" notes it
  }
  if (todo.delay) await wait(todo.delay);
  if (todo.hint) response.writeEarlyHints({ link: "</style.css>; rel=preload" });
  response.statusCode = todo.status || 200;
  response.setHeader("x-received", String(line.received));
  if (todo.header) response.setHeader("x-large", todo.header);
  if (todo.pieces) {
    if (todo.trailers) response.setHeader("trailer", "x-sum");
    if (todo.unframed) { response.useChunkedEncodingByDefault = false; response.shouldKeepAlive = false; response.chunkedEncoding = false; response.removeHeader("transfer-encoding"); }
    for (const size of todo.pieces) {
      if (!write(Buffer.alloc(size, 0x61))) await new Promise((resolve) => response.once("drain", resolve).once("close", resolve));
      if (todo.pause) await wait(todo.pause);
      if (todo.reset) { await wait(20); request.socket.destroy(); return; }
      if (response.destroyed) return;
    }
    if (todo.trailers) response.addTrailers({ "x-sum": String(line.sent) });
    response.end();
  } else if (todo.size === undefined) response.end();
  else {
    const body = Buffer.alloc(todo.size, 0x62);
    response.setHeader("content-length", body.length);
    line.sent += method === "HEAD" ? 0 : body.length;
    response.end(body);
  }
}

function serveHttp() {
  const server = http.createServer({ keepAliveTimeout: 30000, maxHeaderSize: 65536 }, (request, response) => answerHttp(request, response));
  server.maxRequestsPerSocket = 0;
  server.on("checkContinue", (request, response) => {
    if (request.url.startsWith("/refuse")) {
      response.writeHead(417, { "content-length": 0, connection: "close" });
      note({ protocol: "HTTP/1.1", port: request.socket.firstPort, method: request.method, uri: request.url, received: 0, sent: 0, status: 417, completed: true, header: response._header.length });
      response.end();
      return;
    }
    response.writeContinue();
    answerHttp(request, response, true);
  });
  server.on("upgrade", (request, socket, head) => {
    const answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    const line = { protocol: "HTTP/1.1", port: socket.firstPort, method: request.method, uri: request.url, status: 101, completed: true, header: answer.length, received: 0, sent: 0 };
    note(line);
    socket.write(answer);
    socket.write(head);
    socket.pipe(socket);
    socket.on("error", () => {});
  });
  server.on("connect", (request, socket, head) => {
    const answer = "HTTP/1.1 200 Connected\r\n\r\n";
    note({ protocol: "HTTP/1.1", port: socket.firstPort, method: "CONNECT", uri: request.url, status: 200, completed: true, header: answer.length, received: 0, sent: 0 });
    socket.write(answer);
    socket.pipe(socket);
    socket.on("error", () => {});
  });
  // A socket that is closed does not know its peer any more.
  server.on("connection", (socket) => { socket.firstPort = socket.remotePort; });
  server.on("clientError", (error, socket) => socket.destroy());
  server.listen(Number(port), address, ready);
}

function serveHttp2() {
  const server = http2.createServer({ settings: { maxConcurrentStreams: 200 } });
  server.on("session", (session) => { session.firstPort = session.socket.remotePort; });
  server.on("sessionError", () => {});
  server.on("stream", async (stream, headers) => {
    const uri = headers[":path"];
    const method = headers[":method"];
    const line = { protocol: "HTTP/2.0", port: stream.session.firstPort, stream: stream.id, method, uri, status: 0, received: 0, sent: 0 };
    stream.on("error", () => {});
    stream.on("close", () => note({ ...line, completed: stream.writableEnded && stream.rstCode === 0 && !stream.aborted, reset: stream.rstCode }));
    const write = (data) => { line.sent += data.length; return stream.write(data); };
    const todo = plan(uri);
    if (todo.refuse) { stream.close(http2.constants.NGHTTP2_REFUSED_STREAM); return; }
    const respond = (fields, options) => { line.status = fields[":status"]; stream.respond(fields, options); };
    if (todo.echo) {
      respond({ ":status": 200 });
      stream.on("data", (data) => {
        line.received += data.length;
        if (!write(data)) { stream.pause(); stream.once("drain", () => stream.resume()); }
      });
      stream.on("end", () => stream.end());
      return;
    }
    stream.on("data", (data) => { line.received += data.length; });
    if (!stream.readableEnded) await new Promise((resolve) => stream.once("end", resolve).once("close", resolve));
    if (todo.delay) await wait(todo.delay);
    if (stream.closed) return; // reset: what is answered now is not sent
    if (todo.hint) stream.additionalHeaders({ ":status": 103, link: "</style.css>; rel=preload" });
    const fields = { ":status": todo.status || 200, "x-received": String(line.received) };
    if (todo.header) fields["x-large"] = todo.header;
    if (method === "HEAD" || (todo.size === undefined && !todo.pieces)) { respond(fields, { endStream: true }); return; }
    if (todo.pieces) {
      respond(fields, { waitForTrailers: todo.trailers });
      if (todo.trailers) stream.on("wantTrailers", () => stream.sendTrailers({ "x-sum": String(line.sent) }));
      for (const size of todo.pieces) {
        if (!write(Buffer.alloc(size, 0x61))) await new Promise((resolve) => stream.once("drain", resolve).once("close", resolve));
        if (todo.pause) await wait(todo.pause);
        // Not stream.close(): it ends the response first, if the session has nothing else to write.
        if (todo.reset) { stream.write("", () => stream.destroy(new Error("asked for"))); return; }
        if (stream.destroyed) return;
      }
      stream.end();
    } else {
      fields["content-length"] = todo.size;
      respond(fields);
      line.sent += todo.size;
      stream.end(Buffer.alloc(todo.size, 0x62));
    }
  });
  server.listen(Number(port), address, ready);
}

function serveGrpc() {
  const grpc = require(path.join(process.env.NODE_PATH, "@grpc/grpc-js"));
  const { methods, status } = require("./grpc_methods.js");
  const details = (call) => Object.assign(JSON.parse(call.metadata.get("x-test")[0] || "{}"), {});
  const begin = (call, method) => ({ method: "POST", uri: `/podwire.test.Echo/${method}`, port: Number(call.getPeer().split(":").pop()), id: String(call.metadata.get("x-test-id")[0] || ""), received: 0, sent: 0, messages: 0 });
  const size = (data) => 5 + data.length;
  const fail = (plan) => Object.assign(new Error(plan.message || "asked for"), { code: plan.code, details: plan.message || "asked for" });
  const over = (call, line, code) => { if (!line.over) { line.over = true; note({ ...line, grpc_status: code, cancelled: call.cancelled }); } };
  const handlers = {
    async Unary(call, callback) {
      const line = begin(call, "Unary");
      const plan = details(call);
      line.received += size(call.request);
      call.on("cancelled", () => over(call, line, status.CANCELLED));
      while (plan.late && !call.cancelled) await wait(10);
      if (plan.code) { over(call, line, plan.code); callback(fail(plan)); return; }
      const answer = plan.size === undefined ? call.request : Buffer.alloc(plan.size, 0x63);
      line.sent += size(answer);
      over(call, line, 0);
      callback(null, answer);
    },
    async ServerStream(call) {
      const line = begin(call, "ServerStream");
      const plan = details(call);
      line.received += size(call.request);
      call.on("cancelled", () => over(call, line, status.CANCELLED));
      for (let i = 0; i < (plan.count || 0); i++) {
        const answer = Buffer.alloc(plan.size || 10, 0x64);
        line.sent += size(answer);
        if (!call.write(answer)) await new Promise((resolve) => call.once("drain", resolve).once("cancelled", resolve));
        if (plan.delay) await wait(plan.delay);
        if (call.cancelled) return;
      }
      over(call, line, plan.code || 0);
      if (plan.code) call.emit("error", fail(plan)); else call.end();
    },
    ClientStream(call, callback) {
      const line = begin(call, "ClientStream");
      const plan = details(call);
      call.on("cancelled", () => over(call, line, status.CANCELLED));
      call.on("error", () => {});
      call.on("data", (data) => { line.received += size(data); line.messages += 1; });
      call.on("end", () => {
        if (plan.code) { over(call, line, plan.code); callback(fail(plan)); return; }
        const answer = Buffer.from(String(line.messages));
        line.sent += size(answer);
        over(call, line, 0);
        callback(null, answer);
      });
    },
    Bidi(call) {
      const line = begin(call, "Bidi");
      call.on("cancelled", () => over(call, line, status.CANCELLED));
      call.on("error", () => {});
      call.on("data", (data) => { line.received += size(data); line.sent += size(data); call.write(data); });
      call.on("end", () => { over(call, line, 0); call.end(); });
    },
  };
  const server = new grpc.Server({ "grpc.max_receive_message_length": -1 });
  server.addService(methods, handlers);
  const pair = certificate && { cert_chain: fs.readFileSync(certificate), private_key: fs.readFileSync(key) };
  const credentials = pair ? grpc.ServerCredentials.createSsl(null, [pair]) : grpc.ServerCredentials.createInsecure();
  server.bindAsync(`${address}:${port}`, credentials, (error) => { if (error) throw error; ready(); });
}

({ http: serveHttp, http2: serveHttp2, grpc: serveGrpc })[kind]();
