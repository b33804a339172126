// A server and a client of node's own HTTP/2. Prints the server's port, waits for the proxy's on
// standard input, and then prints a line of JSON: what the client asked for and was told.
'use strict';
const http2 = require('http2');
const readline = require('readline');

const server = http2.createServer();
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  const [, kind, argument] = headers[':path'].split('/');
  let size = 0;
  stream.on('data', (chunk) => { size += chunk.length; });
  if (kind === 'reset') { stream.close(http2.constants.NGHTTP2_REFUSED_STREAM); return; }
  stream.on('end', () => {
    if (kind === 'grpc') {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': argument }));
      stream.end(Buffer.alloc(size));
    } else if (kind === 'push') {
      stream.pushStream({ ':path': '/pushed/' + argument }, (error, pushed) => {
        if (error) throw error;
        pushed.respond({ ':status': 201 });
        pushed.end('pushed');
      });
      stream.respond({ ':status': 202 });
      stream.end('x');
    } else if (kind === 'cancel') {
      stream.respond({ ':status': 200 });
      stream.write('some');
    } else {
      stream.additionalHeaders({ ':status': 103 });
      stream.respond({ ':status': Number(argument) });
      stream.end(Buffer.alloc(size));
    }
  });
});

const seen = [];
function ask(session, path, type, size) {
  return new Promise((resolve) => {
    const call = { path, status: 0, grpc: null, sent: size, received: 0 };
    seen.push(call);
    const request = session.request({ ':method': 'POST', ':path': path, 'content-type': type });
    request.on('response', (headers) => { call.status = headers[':status']; });
    request.on('trailers', (headers) => { call.grpc = Number(headers['grpc-status']); });
    request.on('data', (chunk) => {
      call.received += chunk.length;
      if (path.startsWith('/cancel')) request.close(http2.constants.NGHTTP2_CANCEL);
    });
    request.on('error', () => {});
    request.on('close', resolve);
    request.end(Buffer.alloc(size));
  });
}

server.listen(0, '127.0.0.1', () => console.log(server.address().port));
readline.createInterface({ input: process.stdin }).once('line', async (port) => {
  const session = http2.connect('http://127.0.0.1:' + port);
  session.on('stream', (pushed, headers) => {
    const call = { path: headers[':path'], status: 0, grpc: null, sent: 0, received: 0 };
    seen.push(call);
    pushed.on('push', (answer) => { call.status = answer[':status']; });
    pushed.on('data', (chunk) => { call.received += chunk.length; });
  });
  for (let round = 0; round < 3; round += 1) {
    const all = [];
    for (let n = 0; n < 100; n += 1) all.push(ask(session, `/grpc/${n % 17}`, 'application/grpc', n * 500));
    for (const status of [200, 404, 418, 503]) all.push(ask(session, `/plain/${status}`, 'text/plain', 70000));
    for (let n = 0; n < 5; n += 1) all.push(ask(session, `/push/${n}`, 'text/plain', 3));
    all.push(ask(session, '/reset/', 'text/plain', 0), ask(session, '/cancel/', 'text/plain', 3));
    await Promise.all(all);
  }
  session.close(() => { console.log(JSON.stringify(seen)); server.close(); process.exit(0); });
});
