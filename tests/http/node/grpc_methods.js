// The one gRPC service of the traffic suite; messages are plain bytes, so no code is generated.
"use strict";
const same = (data) => data;
const method = (name, requestStream, responseStream) => ({
  path: `/podwire.test.Echo/${name}`,
  requestStream,
  responseStream,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});
exports.methods = {
  Unary: method("Unary", false, false),
  ServerStream: method("ServerStream", false, true),
  ClientStream: method("ClientStream", true, false),
  Bidi: method("Bidi", true, true),
};
exports.status = { OK: 0, CANCELLED: 1, DEADLINE_EXCEEDED: 4, NOT_FOUND: 5, INTERNAL: 13 };
