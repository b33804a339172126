// Node.js inside TLS, HTTP/1: `serve PORT CERTIFICATE KEY LOG` or `ask PORT PATH COUNT CONNECTIONS`.
"use strict";
const fs = require("fs");
const https = require("https");

const [role, port, ...rest] = process.argv.slice(2);

if (role === "serve") {
  const [certificate, key, log] = rest;
  const options = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
  const server = https.createServer(options, (request, response) => {
    let received = 0;
    request.on("data", (data) => (received += data.length));
    request.on("end", () => {
      const sent = Number(request.url.split("/")[2]);
      const line = { port: request.socket.remotePort, method: request.method, path: request.url };
      fs.appendFileSync(log, JSON.stringify({ ...line, received, sent }) + "\n");
      response.end(Buffer.alloc(sent, "a"));
    });
  });
  server.listen(Number(port), "127.0.0.1", () => console.log("ready"));
  process.on("SIGTERM", () => process.exit(0));
} else {
  const [path, count, connections] = rest;
  const agent = new https.Agent({ keepAlive: true, maxSockets: Number(connections) });
  let left = Number(count);
  for (let number = 0; number < Number(count); number++) {
    const options = { port: Number(port), host: "127.0.0.1", path: `${path}/${number}`, agent };
    https.get({ ...options, rejectUnauthorized: false }, (response) => {
      if (response.statusCode !== 200) process.exit(1);
      response.resume();
      response.on("end", () => --left || agent.destroy());
    });
  }
}
