"""Wire compatibility: the generated code has what an OAP's own protocol has, and nothing else."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor

from schemas.pb import skywalking_accesslog_pb2 as accesslog
from schemas.pb import skywalking_common_pb2 as common

# message, number, type, field, oneof
FIELDS = """
    KeyStringValuePair 1 string key -
    KeyStringValuePair 2 string value -
    Instant 1 int64 seconds -
    Instant 2 int32 nanos -
    EBPFAccessLogMessage 1 EBPFAccessLogNodeInfo node -
    EBPFAccessLogMessage 2 AccessLogConnection connection -
    EBPFAccessLogMessage 3 repeated:AccessLogKernelLog kernelLogs -
    EBPFAccessLogMessage 4 AccessLogProtocolLogs protocolLog -
    EBPFAccessLogNodeInfo 1 string name -
    EBPFAccessLogNodeInfo 2 repeated:EBPFAccessLogNodeNetInterface netInterfaces -
    EBPFAccessLogNodeInfo 3 Instant bootTime -
    EBPFAccessLogNodeInfo 4 string clusterName -
    EBPFAccessLogNodeInfo 5 EBPFAccessLogPolicy policy -
    EBPFAccessLogPolicy 1 repeated:string excludeNamespaces -
    EBPFAccessLogNodeNetInterface 1 int32 index -
    EBPFAccessLogNodeNetInterface 2 int32 mtu -
    EBPFAccessLogNodeNetInterface 3 string name -
    AccessLogConnection 1 ConnectionAddress local -
    AccessLogConnection 2 ConnectionAddress remote -
    AccessLogConnection 3 DetectPoint role -
    AccessLogConnection 4 AccessLogConnectionTLSMode tlsMode -
    AccessLogConnection 5 AccessLogProtocolType protocol -
    AccessLogConnection 6 ConnectionAttachment attachment -
    ConnectionAttachment 1 ZTunnelAttachmentEnvironment zTunnel environment
    ZTunnelAttachmentEnvironment 1 string real_destination_ip -
    ZTunnelAttachmentEnvironment 2 ZTunnelAttachmentEnvironmentDetectBy by -
    ZTunnelAttachmentEnvironment 3 ZTunnelAttachmentSecurityPolicy security_policy -
    ZTunnelAttachmentEnvironment 4 repeated:KeyStringValuePair addition -
    ConnectionAddress 1 KubernetesProcessAddress kubernetes address
    ConnectionAddress 2 IPAddress ip address
    KubernetesProcessAddress 1 string serviceName -
    KubernetesProcessAddress 2 string podName -
    KubernetesProcessAddress 3 string containerName -
    KubernetesProcessAddress 4 string processName -
    KubernetesProcessAddress 5 int32 port -
    IPAddress 1 string host -
    IPAddress 2 int32 port -
    AccessLogKernelLog 1 AccessLogKernelConnectOperation connect operation
    AccessLogKernelLog 2 AccessLogKernelAcceptOperation accept operation
    AccessLogKernelLog 3 AccessLogKernelCloseOperation close operation
    AccessLogKernelLog 4 AccessLogKernelReadOperation read operation
    AccessLogKernelLog 5 AccessLogKernelWriteOperation write operation
    AccessLogProtocolLogs 1 AccessLogHTTPProtocol http protocol
    AccessLogHTTPProtocol 1 EBPFTimestamp startTime -
    AccessLogHTTPProtocol 2 EBPFTimestamp endTime -
    AccessLogHTTPProtocol 3 AccessLogHTTPProtocolVersion version -
    AccessLogHTTPProtocol 4 AccessLogHTTPProtocolRequest request -
    AccessLogHTTPProtocol 5 AccessLogHTTPProtocolResponse response -
    AccessLogHTTPProtocolRequest 1 AccessLogHTTPProtocolRequestMethod method -
    AccessLogHTTPProtocolRequest 2 string path -
    AccessLogHTTPProtocolRequest 3 uint64 sizeOfHeadersBytes -
    AccessLogHTTPProtocolRequest 4 uint64 sizeOfBodyBytes -
    AccessLogHTTPProtocolRequest 5 AccessLogTraceInfo trace -
    AccessLogHTTPProtocolRequest 6 string host -
    AccessLogHTTPProtocolResponse 1 int32 statusCode -
    AccessLogHTTPProtocolResponse 3 uint64 sizeOfHeadersBytes -
    AccessLogHTTPProtocolResponse 4 uint64 sizeOfBodyBytes -
    AccessLogTraceInfo 1 AccessLogTraceInfoProvider provider -
    AccessLogTraceInfo 2 string traceId -
    AccessLogTraceInfo 3 string traceSegmentId -
    AccessLogTraceInfo 4 string spanId -
    AccessLogKernelConnectOperation 1 EBPFTimestamp startTime -
    AccessLogKernelConnectOperation 2 EBPFTimestamp endTime -
    AccessLogKernelConnectOperation 3 bool success -
    AccessLogKernelAcceptOperation 1 EBPFTimestamp startTime -
    AccessLogKernelAcceptOperation 2 EBPFTimestamp endTime -
    AccessLogKernelCloseOperation 1 EBPFTimestamp startTime -
    AccessLogKernelCloseOperation 2 EBPFTimestamp endTime -
    AccessLogKernelCloseOperation 3 bool success -
    AccessLogKernelWriteOperation 1 EBPFTimestamp startTime -
    AccessLogKernelWriteOperation 2 EBPFTimestamp endTime -
    AccessLogKernelWriteOperation 3 AccessLogKernelWriteSyscall syscall -
    AccessLogKernelWriteOperation 4 AccessLogKernelWriteL4Metrics l4Metrics -
    AccessLogKernelWriteOperation 5 AccessLogKernelWriteL3Metrics l3Metrics -
    AccessLogKernelWriteOperation 6 AccessLogKernelWriteL2Metrics l2Metrics -
    AccessLogKernelWriteL4Metrics 1 uint64 totalDuration -
    AccessLogKernelWriteL4Metrics 2 int64 totalTransmitPackageCount -
    AccessLogKernelWriteL4Metrics 3 int64 totalRetransmitPackageCount -
    AccessLogKernelWriteL4Metrics 4 repeated:AccessLogLossPackageMetrics lossPackageMetrics -
    AccessLogKernelWriteL4Metrics 5 int64 totalPackageSize -
    AccessLogLossPackageMetrics 1 string location -
    AccessLogLossPackageMetrics 2 int32 count -
    AccessLogKernelWriteL3Metrics 1 uint64 totalDuration -
    AccessLogKernelWriteL3Metrics 2 uint64 totalLocalDuration -
    AccessLogKernelWriteL3Metrics 3 uint64 totalOutputDuration -
    AccessLogKernelWriteL3Metrics 5 uint64 totalResolveMACCount -
    AccessLogKernelWriteL3Metrics 6 uint64 totalResolveMACDuration -
    AccessLogKernelWriteL3Metrics 7 uint64 totalNetFilterCount -
    AccessLogKernelWriteL3Metrics 8 uint64 totalNetFilterDuration -
    AccessLogKernelWriteL2Metrics 1 uint64 totalDuration -
    AccessLogKernelWriteL2Metrics 2 uint32 ifindex -
    AccessLogKernelWriteL2Metrics 3 uint64 totalEnterQueueBufferCount -
    AccessLogKernelWriteL2Metrics 4 uint64 totalReadySendDuration -
    AccessLogKernelWriteL2Metrics 5 uint64 totalNetDeviceSendDuration -
    AccessLogKernelReadOperation 1 EBPFTimestamp startTime -
    AccessLogKernelReadOperation 2 EBPFTimestamp endTime -
    AccessLogKernelReadOperation 3 AccessLogKernelReadSyscall syscall -
    AccessLogKernelReadOperation 4 AccessLogKernelReadL2Metrics l2Metrics -
    AccessLogKernelReadOperation 5 AccessLogKernelReadL3Metrics l3Metrics -
    AccessLogKernelReadOperation 6 AccessLogKernelReadL4Metrics l4Metrics -
    AccessLogKernelReadL2Metrics 1 uint32 ifindex -
    AccessLogKernelReadL2Metrics 2 uint32 totalPackageCount -
    AccessLogKernelReadL2Metrics 3 uint64 totalPackageSize -
    AccessLogKernelReadL2Metrics 4 uint64 totalPackageToQueueDuration -
    AccessLogKernelReadL2Metrics 5 uint64 totalRcvPackageFromQueueDuration -
    AccessLogKernelReadL3Metrics 1 uint64 totalDuration -
    AccessLogKernelReadL3Metrics 2 uint64 totalRecvDuration -
    AccessLogKernelReadL3Metrics 3 uint64 totalLocalDuration -
    AccessLogKernelReadL3Metrics 4 uint64 totalNetFilterCount -
    AccessLogKernelReadL3Metrics 5 uint64 totalNetFilterDuration -
    AccessLogKernelReadL4Metrics 1 uint64 totalDuration -
    EBPFTimestamp 1 EBPFOffsetTimestamp offset timestamp
    EBPFOffsetTimestamp 1 uint64 offset -
"""
EMPTY = ("EBPFAccessLogDownstream",)
ENUMS = """
    DetectPoint client=0 server=1 proxy=2
    ZTunnelAttachmentEnvironmentDetectBy ZTUNNEL_OUTBOUND_FUNC=0 ZTUNNEL_INBOUND_FUNC=1
    ZTunnelAttachmentSecurityPolicy MTLS=0 NONE=1
    AccessLogConnectionTLSMode Plain=0 TLS=1
    AccessLogHTTPProtocolVersion HTTP1=0 HTTP2=1
    AccessLogTraceInfoProvider Zipkin=0 SkyWalking=1
    AccessLogHTTPProtocolRequestMethod \
        Get=0 Post=1 Put=2 Delete=3 Head=4 Patch=5 Options=6 Trace=7 Connect=8
    AccessLogKernelWriteSyscall \
        Write=0 Writev=1 Send=2 SendTo=3 SendMsg=4 SendMmsg=5 SendFile=6 SendFile64=7
    AccessLogKernelReadSyscall Read=0 Readv=1 Recv=2 RecvFrom=3 RecvMsg=4 RecvMmsg=5
    AccessLogProtocolType TCP=0 HTTP_1=1 HTTP_2=2
"""
FILES = (common.DESCRIPTOR, accesslog.DESCRIPTOR)
MESSAGES = {n: m for file in FILES for n, m in file.message_types_by_name.items()}
ENUM_TYPES = {n: e for file in FILES for n, e in file.enum_types_by_name.items()}
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def rows(table):
    return [line.split() for line in table.strip().splitlines()]


def told(field):
    kind = field.message_type or field.enum_type
    name = kind.name if kind else SCALARS[field.type]
    oneof = field.containing_oneof.name if field.containing_oneof else "-"
    return [
        field.containing_type.name,
        str(field.number),
        f"repeated:{name}" if field.is_repeated else name,
        field.name,
        oneof,
    ]


@pytest.mark.parametrize("row", rows(FIELDS), ids=lambda row: f"{row[0]}.{row[3]}")
def test_field(row):
    message = MESSAGES[row[0]]
    assert told(message.fields_by_name[row[3]]) == row
    assert message.full_name == f"skywalking.v3.{row[0]}"


def test_there_is_no_other_field_or_message():
    found = [told(field) for message in MESSAGES.values() for field in message.fields]
    assert sorted(found) == sorted(rows(FIELDS))
    assert set(MESSAGES) == {row[0] for row in rows(FIELDS)} | set(EMPTY)


@pytest.mark.parametrize("row", rows(ENUMS), ids=lambda row: row[0])
def test_enum(row):
    enum = ENUM_TYPES[row[0]]
    assert [f"{value.name}={value.number}" for value in enum.values] == row[1:]
    assert enum.full_name == f"skywalking.v3.{row[0]}"


def test_there_is_no_other_enum():
    assert set(ENUM_TYPES) == {row[0] for row in rows(ENUMS)}


def test_no_field_has_presence_of_its_own():
    # proto3 without `optional`: else the descriptor would have an artificial oneof.
    real = {("ConnectionAttachment", "environment"), ("ConnectionAddress", "address")}
    real |= {("AccessLogKernelLog", "operation"), ("AccessLogProtocolLogs", "protocol")}
    real |= {("EBPFTimestamp", "timestamp")}
    assert {(m.name, oneof) for m in MESSAGES.values() for oneof in m.oneofs_by_name} == real


def test_service():
    service = accesslog.DESCRIPTOR.services_by_name["EBPFAccessLogService"]
    (method,) = service.methods
    assert f"/{service.full_name}/{method.name}" == "/skywalking.v3.EBPFAccessLogService/collect"
    assert (method.client_streaming, method.server_streaming) == (True, False)
    assert method.input_type.name == "EBPFAccessLogMessage"
    assert method.output_type.name == "EBPFAccessLogDownstream"
    assert not method.output_type.fields
