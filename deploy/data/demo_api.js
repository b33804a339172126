// The "api" pods of the demo: node.js, asks the stock service for every request.
// usage: node demo_api.js PORT STOCK_HOST STOCK_PORT
const http = require("http");
const [port, host, stockPort] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });

http
  .createServer((request, response) => {
    if (request.url === "/health") return response.end("ok\n");
    const answer = (status, body) => {
      response.writeHead(status, { "Content-Type": "application/json" });
      response.end(body);
    };
    http
      .get({ host, port: stockPort, path: request.url, agent }, (stock) => {
        const parts = [];
        stock.on("data", (part) => parts.push(part));
        stock.on("end", () => answer(200, Buffer.concat(parts)));
      })
      .on("error", (error) => answer(502, JSON.stringify({ error: error.message })));
  })
  .listen(Number(port), "::");
