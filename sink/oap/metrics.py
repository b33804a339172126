"""Where each metric of a SkyWalking OAP is found in podwire: every name of both generations.

The later generation (10.2 on) has means where the former (10.0, 10.1) has sums, and milliseconds
where it has nanoseconds of HTTP calls. A metric is a figure of podwire's tables and how its rows
are put together; what podwire does not keep is refused, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from schemas.catalogue import FIGURE_BY_NAME, SCOPE_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FORMER", "GENERATIONS", "LATER", "Metric", "metrics_of"]

FORMER: Final = "10.0"
LATER: Final = "10.2"
GENERATIONS: Final = {FORMER: "10.0 and 10.1", LATER: "10.2 and later"}

How = Literal["sum", "mean", "ratio", "apdex", "percentile", "refused"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of an OAP.

    Attributes:
        name: Its name there.
        scope: The scope of podwire's tables that has the figure.
        role: Which rows: "client", "server", or "" for the sum of both.
        how: How the figure becomes the metric.
        figure: The figure.
        milliseconds: Whether the OAP has whole milliseconds where podwire has nanoseconds.
        note: What is to be known; of one that is refused, why.
    """

    name: str
    scope: str
    role: str
    how: How
    figure: str
    milliseconds: bool
    note: str

    @property
    def table(self) -> str:
        """Table to query."""
        return SCOPE_BY_NAME[self.scope].metrics_table

    @property
    def per(self) -> str:
        """Of a mean or a ratio, the figure that it is divided by."""
        prefix = self.figure.partition("_")[0]
        return {
            "resolve": "write_count",
            "read": "read_count",
            "write": "write_count",
            "http": "http_call_count",
        }.get(prefix, f"{prefix}_count")

    @property
    def sql(self) -> str:
        """An expression over the rows of the table, of one minute and entity."""
        total = f"sum({self.figure})"
        if self.how == "sum":
            return f"intDiv({total}, 1000000)" if self.milliseconds else total
        if self.how == "mean":
            per = f"sum({self.per})" + (" * 1000000" if self.milliseconds else "")
            return f"intDiv({total}, {per})"
        if self.how == "ratio":
            return f"intDiv({total} * 10000, sum({self.per}))"
        if self.how == "refused":
            return ""
        buckets = "sumMap(http_duration_histogram)"
        return f"{self.how} of {buckets}; see {self.scope}_{_VIEWS[self.how]}"


_VIEWS: Final = {"apdex": "overview.http_apdex", "percentile": "latency"}

_SCOPES: Final = {
    "S": ("service", "kubernetes_service_"),
    "I": ("instance", "kubernetes_service_instance_"),
    "E": ("endpoint", "kubernetes_service_endpoint_"),
    "R": ("service_relation", "kubernetes_service_relation_"),
    "IR": ("instance_relation", "kubernetes_service_instance_relation_"),
}
_ROLES: Final = ("server_", "client_")

# suffix, * standing for server and client; scopes; how; figure. Sums of the later generation are in
# the former too, less those of _LATER_SUMS.
_IN_LATER: Final = """
    connect_cpm                               | S,I,R,IR | sum     | connect_count
    connect_time                              | S,I      | mean    | connect_duration
    connect_success_cpm                       | S,I,R,IR | sum     | connect_success_count
    accept_cpm                                | S,I,R,IR | sum     | accept_count
    accept_time                               | S,I      | mean    | accept_duration
    close_cpm                                 | S,I,R,IR | sum     | close_count
    close_time                                | S,I      | mean    | close_duration
    write_cpm                                 | S,I      | sum     | write_count
    write_time                                | S,I      | mean    | write_duration
    write_l4_time                             | S,I      | mean    | write_l4_duration
    write_package_cpm                         | S,I      | sum     | write_packet_count
    write_retrains_package_cpm                | S,I      | sum     | write_retransmit_packet_count
    write_package_size                        | S,I      | sum     | write_packet_size
    write_l3_time                             | S,I      | mean    | write_l3_duration
    write_l3_local_time                       | S,I      | mean    | write_l3_local_duration
    write_l3_output_time                      | S,I      | mean    | write_l3_output_duration
    write_l2_time                             | S,I      | mean    | write_l2_duration
    write_l2_enter_avg_queue_count            | S        | mean    | write_l2_enter_queue_count
    write_l2_ready_avg_send_duration          | S        | mean    | write_l2_ready_send_duration
    write_l2_net_device_avg_send_duration     | S | mean | write_l2_netdevice_send_duration
    read_cpm                                  | S,I      | sum     | read_count
    read_time                                 | S,I      | mean    | read_duration
    read_l4_time                              | S,I      | mean    | read_l4_duration
    read_l3_time                              | S,I      | mean    | read_l3_duration
    read_l3_rcv_time                          | S,I      | mean    | read_l3_recv_duration
    read_l3_local_time                        | S,I      | mean    | read_l3_local_duration
    read_package_cpm                          | S,I      | sum     | read_packet_count
    read_package_size                         | S,I      | sum     | read_packet_size
    read_package_to_queue_time                | S,I      | mean    | read_packet_to_queue_duration
    read_rcv_package_from_queue_time          | S,I      | mean    | read_packet_to_queue_duration
    resolve_mac_cpm                           | S,I      | sum     | resolve_mac_count
    resolve_mac_duration                      | S,I      | sum     | resolve_mac_duration
    write_netfilter_cpm                       | S,I      | sum     | write_netfilter_count
    write_netfilter_duration                  | S,I      | sum     | write_netfilter_duration
    read_netfilter_cpm                        | S,I      | sum     | read_netfilter_count
    read_netfilter_duration                   | S,I      | sum     | read_netfilter_duration
    http_call_cpm                             | S,I      | sum     | http_call_count
    http_call_time                            | S,I      | mean    | http_duration
    http_call_successful_rate                 | S,I      | ratio   | http_success_count
    http_avg_req_header_size                  | S,I      | mean    | http_request_header_size
    http_avg_req_body_size                    | S,I      | mean    | http_request_body_size
    http_avg_resp_header_size                 | S,I      | mean    | http_response_header_size
    http_avg_resp_body_size                   | S,I      | mean    | http_response_body_size
    apdex                                     | S,I      | apdex   | http_duration
    percentile                                | S,I      | percentile | http_duration
    http_status_1xx_cpm                       | S,I      | sum     | http_status_1xx_count
    http_status_2xx_cpm                       | S,I      | sum     | http_status_2xx_count
    http_status_3xx_cpm                       | S,I      | sum     | http_status_3xx_count
    http_status_4xx_cpm                       | S,I      | sum     | http_status_4xx_count
    http_status_5xx_cpm                       | S,I      | sum     | http_status_5xx_count
    write_l2_avg_enter_queue_count            | I        | mean    | write_l2_enter_queue_count
    write_l2_ready_send_time                  | I        | mean    | write_l2_ready_send_duration
    write_l2_net_device_send_time             | I | mean | write_l2_netdevice_send_duration
    call_cpm                                  | E        | sum     | http_call_count
    call_successful_rate                      | E        | ratio   | http_success_count
    call_time                                 | E        | mean    | http_duration
    http_call_cpm                             | E        | sum     | http_call_count
    http_call_successful_rate                 | E        | ratio   | http_success_count
    http_call_time                            | E        | mean    | http_duration
    http_avg_req_header_size                  | E        | mean    | http_request_header_size
    http_avg_req_body_size                    | E        | mean    | http_request_body_size
    http_avg_resp_header_size                 | E        | mean    | http_response_header_size
    http_avg_resp_body_size                   | E        | mean    | http_response_body_size
    http_status_1xx_cpm                       | E        | sum     | http_status_1xx_count
    http_status_2xx_cpm                       | E        | sum     | http_status_2xx_count
    http_status_3xx_cpm                       | E        | sum     | http_status_3xx_count
    http_status_4xx_cpm                       | E        | sum     | http_status_4xx_count
    http_status_5xx_cpm                       | E        | sum     | http_status_5xx_count
    connect_duration                          | R,IR     | sum     | connect_duration
    accept_duration                           | R,IR     | sum     | accept_duration
    close_duration                            | R,IR     | sum     | close_duration
    *_write_cpm                               | R,IR     | sum     | write_count
    *_write_package_cpm                       | R,IR     | sum     | write_packet_count
    *_write_retrains_package_cpm              | R,IR     | sum     | write_retransmit_packet_count
    *_write_package_size                      | R,IR     | sum     | write_packet_size
    *_write_package_duration                  | R,IR     | sum     | write_duration
    *_read_cpm                                | R,IR     | sum     | read_count
    *_read_package_cpm                        | R,IR     | sum     | read_packet_count
    *_read_package_size                       | R,IR     | sum     | read_packet_size
    *_read_package_duration                   | R,IR     | sum     | read_duration
    *_write_l4_time                           | R,IR     | mean    | write_l4_duration
    *_write_l3_time                           | R,IR     | mean    | write_l3_duration
    *_write_l3_local_time                     | R,IR     | mean    | write_l3_local_duration
    *_write_l3_output_time                    | R,IR     | mean    | write_l3_output_duration
    *_write_l2_time                           | R,IR     | mean    | write_l2_duration
    *_write_l2_ready_send_time                | R,IR     | mean    | write_l2_ready_send_duration
    *_write_l2_net_dev_send_time              | R,IR | mean | write_l2_netdevice_send_duration
    *_read_l4_time                            | R,IR     | mean    | read_l4_duration
    *_read_l3_time                            | R,IR     | mean    | read_l3_duration
    *_read_l3_rcv_time                        | R,IR     | mean    | read_l3_recv_duration
    *_read_l3_local_time                      | R,IR     | mean    | read_l3_local_duration
    *_read_l2_package_to_queue_time           | R,IR     | mean    | read_packet_to_queue_duration
    *_read_l2_rcv_package_from_queue_time     | R,IR     | mean    | read_packet_from_queue_duration
    *_write_resolve_mac_cpm                   | R,IR     | sum     | resolve_mac_count
    *_write_resolve_mac_duration              | R,IR     | sum     | resolve_mac_duration
    *_write_netfilter_cpm                     | R,IR     | sum     | write_netfilter_count
    *_write_netfilter_duration                | R,IR     | sum     | write_netfilter_duration
    *_read_netfilter_cpm                      | R,IR     | sum     | read_netfilter_count
    *_read_netfilter_duration                 | R,IR     | sum     | read_netfilter_duration
    *_http_call_cpm                           | R,IR     | sum     | http_call_count
    *_http_success_cpm                        | R        | sum     | http_success_count
    *_http_call_time                          | R,IR     | mean    | http_duration
    server_http_avg_req_header_size           | R,IR     | mean    | http_request_header_size
    server_http_avg_req_body_size             | R,IR     | mean    | http_request_body_size
    server_http_avg_resp_header_size          | R,IR     | mean    | http_response_header_size
    server_http_avg_resp_body_size            | R,IR     | mean    | http_response_body_size
    *_apdex                                   | R,IR     | apdex   | http_duration
    *_percentile                              | R,IR     | percentile | http_duration
    client_http_call_duration                 | R        | sum     | http_duration
    client_http_avg_req_header_size           | R        | mean    | http_request_header_size
    client_http_avg_req_body_size             | R        | mean    | http_request_body_size
    client_http_avg_resp_header_size          | R        | mean    | http_response_header_size
    client_http_avg_resp_body_size            | R        | mean    | http_response_body_size
    *_http_status_1xx_cpm                     | R,IR     | sum     | http_status_1xx_count
    *_http_status_2xx_cpm                     | R,IR     | sum     | http_status_2xx_count
    *_http_status_3xx_cpm                     | R,IR     | sum     | http_status_3xx_count
    *_http_status_4xx_cpm                     | R,IR     | sum     | http_status_4xx_count
    *_http_status_5xx_cpm                     | R,IR     | sum     | http_status_5xx_count
    client_http_avg_req_header_size           | IR       | sum     | http_request_header_size
    client_http_avg_req_body_size             | IR       | sum     | http_request_body_size
    client_http_avg_resp_header_size          | IR       | sum     | http_response_header_size
    client_http_avg_resp_body_size            | IR       | sum     | http_response_body_size
"""
_ONLY_IN_FORMER: Final = """
    connect_duration                          | S,I      | sum     | connect_duration
    accept_duration                           | S,I      | sum     | accept_duration
    close_duration                            | S,I      | sum     | close_duration
    write_duration                            | S,I      | sum     | write_duration
    write_l4_duration                         | S,I      | sum     | write_l4_duration
    write_l3_duration                         | S,I      | sum     | write_l3_duration
    write_l3_local_duration                   | S,I      | sum     | write_l3_local_duration
    write_l3_output_duration                  | S,I      | sum     | write_l3_output_duration
    write_l2_duration                         | S,I      | sum     | write_l2_duration
    write_l2_enter_queue_count                | S,I      | sum     | write_l2_enter_queue_count
    write_l2_ready_send_duration              | S,I      | sum     | write_l2_ready_send_duration
    write_l2_net_device_send_duration         | S,I | sum | write_l2_netdevice_send_duration
    read_duration                             | S,I      | sum     | read_duration
    read_l4_duration                          | S,I      | sum     | read_l4_duration
    read_l3_duration                          | S,I      | sum     | read_l3_duration
    read_l3_rcv_duration                      | S,I      | sum     | read_l3_recv_duration
    read_l3_local_duration                    | S,I      | sum     | read_l3_local_duration
    read_package_to_queue_duration            | S,I      | sum     | read_packet_to_queue_duration
    read_rcv_package_from_queue_duration      | S,I      | sum     | read_packet_to_queue_duration
    http_call_duration                        | S,I      | sum     | http_duration
    http_call_success_count                   | S,I      | sum     | http_success_count
    http_req_header_size                      | S,I      | sum     | http_request_header_size
    http_req_body_size                        | S,I      | sum     | http_request_body_size
    http_resp_header_size                     | S,I      | sum     | http_response_header_size
    http_resp_body_size                       | S,I      | sum     | http_response_body_size
    call_success_cpm                          | E        | sum     | http_success_count
    call_duration                             | E        | refused | http_duration
    http_call_success_cpm                     | E        | sum     | http_success_count
    http_call_duration                        | E        | sum     | http_duration
    http_req_header_size                      | E        | sum     | http_request_header_size
    http_req_body_size                        | E        | sum     | http_request_body_size
    http_resp_header_size                     | E        | sum     | http_response_header_size
    http_resp_body_size                       | E        | sum     | http_response_body_size
    *_write_l4_duration                       | R,IR     | sum     | write_l4_duration
    *_write_l3_duration                       | R,IR     | sum     | write_l3_duration
    *_write_l3_local_duration                 | R,IR     | sum     | write_l3_local_duration
    *_write_l3_output_duration                | R,IR     | sum     | write_l3_output_duration
    *_write_l2_duration                       | R,IR     | sum     | write_l2_duration
    *_write_l2_ready_send_duration            | R,IR     | sum     | write_l2_ready_send_duration
    *_write_l2_net_dev_send_duration          | R,IR | sum | write_l2_netdevice_send_duration
    *_read_l4_duration                        | R,IR     | sum     | read_l4_duration
    *_read_l3_duration                        | R,IR     | sum     | read_l3_duration
    *_read_l3_rcv_duration                    | R,IR     | sum     | read_l3_recv_duration
    *_read_l3_local_duration                  | R,IR     | sum     | read_l3_local_duration
    *_read_l2_package_to_queue_duration       | R,IR     | sum     | read_packet_to_queue_duration
    *_read_l2_rcv_package_from_queue_duration | R,IR     | sum     | read_packet_from_queue_duration
    server_http_call_duration                 | R,IR     | sum     | http_duration
    *_http_req_header_size                    | R,IR     | sum     | http_request_header_size
    *_http_req_body_size                      | R,IR     | sum     | http_request_body_size
    *_http_resp_header_size                   | R,IR     | sum     | http_response_header_size
    *_http_resp_body_size                     | R,IR     | sum     | http_response_body_size
    client_http_call_duration                 | IR       | sum     | http_duration
"""
_LATER_SUMS: Final = "_instance_relation_client_http_avg_"

_NOTES: Final = {
    "read_rcv_package_from_queue": "An OAP counts the time to the queue under this name too; the "
    "time from the queue is read_packet_from_queue_duration",
    "instance_relation_client_http_avg": "A sum in an OAP, whatever its name says",
    "endpoint_call_duration": "An OAP adds up successful calls only; podwire's http_duration has "
    "all answered calls, and the sum of a part of them is not kept",
}
_NOTES_OF_HOW: Final = {
    "apdex": "T is 500 ms; from a histogram whose buckets are a sixteenth of their start wide",
    "percentile": "50, 75, 90, 95 and 99 %, in steps of 10 ms there; within 5 % here",
    "ratio": "Of 10,000. A gRPC call with an error status is a success in an OAP",
    "sum": "",
    "mean": "",
    "refused": "",
}
_NOTE_OF_SUCCESS: Final = "A gRPC call with an error status is a success in an OAP"


def metrics_of(generation: str) -> dict[str, Metric]:
    """Return the metrics of a generation by name.

    Raises:
        KeyError: If there is no such generation.
    """
    assert GENERATIONS[generation]
    found: dict[str, Metric] = {}
    for metric in _rows(_IN_LATER, milliseconds=generation == LATER):
        common = metric.how == "sum" and _LATER_SUMS not in metric.name
        if generation == LATER or common:
            found[metric.name] = metric
    if generation == FORMER:
        found |= {one.name: one for one in _rows(_ONLY_IN_FORMER, milliseconds=False)}
    return found


def _rows(text: str, *, milliseconds: bool) -> Iterator[Metric]:
    for line in text.strip().splitlines():
        suffix, scopes, how, figure = (part.strip() for part in line.split("|"))
        for key in scopes.split(","):
            for each in _ROLES if suffix.startswith("*_") else ("",):
                yield _metric(key, suffix.replace("*_", each), how, figure, milliseconds)  # type: ignore[arg-type]


def _metric(key: str, suffix: str, how: How, figure: str, milliseconds: bool) -> Metric:
    scope, prefix = _SCOPES[key]
    name = prefix + suffix
    note = next((text for part, text in _NOTES.items() if part in name), _NOTES_OF_HOW[how])
    if figure == "http_success_count" and how == "sum":
        note = _NOTE_OF_SUCCESS
    is_time = figure == "http_duration" and FIGURE_BY_NAME[figure].unit == "ns"
    return Metric(
        name, scope, _role(key, suffix, figure), how, figure, milliseconds and is_time, note
    )


def _role(key: str, suffix: str, figure: str) -> str:
    if key in ("R", "IR"):
        return next((role[:-1] for role in _ROLES if suffix.startswith(role)), "")
    # HTTP calls of services, instances and endpoints are what their servers saw.
    return "server" if figure.startswith("http_") else ""
