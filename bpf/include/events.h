/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Records that cross from the kernel to user space.
 *
 * Fixed width, 8-byte aligned, explicit padding. One ring buffer per kind, so that user space reads
 * a ring as one array. collector/abi.py is generated from the BTF of the built objects.
 * Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2); ports are in
 * host order; times are bpf_ktime_get_ns() (CLOCK_MONOTONIC).
 */
#ifndef PODWIRE_EVENTS_H
#define PODWIRE_EVENTS_H

#ifndef __BPF__
#include <stdint.h>
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef uint64_t __u64;
typedef int32_t __s32;
#endif

/* A duration whose start was not seen. */
#define PODWIRE_UNMEASURED 0xffffffffffffffffULL

enum podwire_connection_event {
	PODWIRE_ANNOUNCED = 1, /* first touch of a socket: carries who it is, counts nothing */
	PODWIRE_CONNECTED = 2, /* a connect was decided; error says how */
	PODWIRE_ACCEPTED = 3,  /* an application took an established connection */
	PODWIRE_CLOSED = 4,    /* this end closed an established connection */
};

enum podwire_role {
	PODWIRE_ROLE_UNKNOWN = 0,
	PODWIRE_ROLE_CLIENT = 1,
	PODWIRE_ROLE_SERVER = 2,
};

enum podwire_direction {
	PODWIRE_READ = 1,
	PODWIRE_WRITE = 2,
};

/* Numbers are part of podwire.events.v1 (Transfers.call): never reuse one. */
enum podwire_call {
	PODWIRE_CALL_OTHER = 0, /* the kernel itself, or a call not listed */
	PODWIRE_CALL_READ = 1,
	PODWIRE_CALL_READV = 2,
	PODWIRE_CALL_RECVFROM = 3,
	PODWIRE_CALL_RECVMSG = 4,
	PODWIRE_CALL_RECVMMSG = 5,
	PODWIRE_CALL_WRITE = 6,
	PODWIRE_CALL_WRITEV = 7,
	PODWIRE_CALL_SENDTO = 8,
	PODWIRE_CALL_SENDMSG = 9,
	PODWIRE_CALL_SENDMMSG = 10,
	PODWIRE_CALL_SENDFILE = 11,
	PODWIRE_CALL_SPLICE = 12,
	PODWIRE_CALL_IO_URING = 13,
	PODWIRE_CALL_NONE = 14, /* none: what came to a connection after its last call */
};

/*
 * What a read record tells beside its bytes, by its place in `figures`. Durations are nanoseconds,
 * summed over the packets since the connection's last read record.
 *
 * A packet's way up: netif_receive_skb -> ip_rcv -> ip_local_deliver -> tcp_v4_rcv -> the socket's
 * queue -> skb_copy_datagram_iovec.
 */
enum podwire_read_figure {
	PODWIRE_READ_PACKET_COUNT = 0,		/* segments with payload: tcp_sock.data_segs_in */
	PODWIRE_READ_PACKET_SIZE = 1,		/* their new payload: tcp_sock.bytes_received */
	PODWIRE_READ_L4_DURATION = 2,		/* in tcp_v4_rcv */
	PODWIRE_READ_L3_DURATION = 3,		/* ip_rcv to tcp_v4_rcv: the next two together */
	PODWIRE_READ_L3_RECV_DURATION = 4,	/* ip_rcv to ip_local_deliver */
	PODWIRE_READ_L3_LOCAL_DURATION = 5,	/* ip_local_deliver to tcp_v4_rcv */
	PODWIRE_READ_PACKET_TO_QUEUE_DURATION = 6,   /* netif_receive_skb to the socket's queue */
	PODWIRE_READ_PACKET_FROM_QUEUE_DURATION = 7, /* from there to the copy */
	PODWIRE_READ_NETFILTER_COUNT = 8,
	PODWIRE_READ_NETFILTER_DURATION = 9,
	PODWIRE_READ_DEVICE_TO_IP_DURATION = 10, /* netif_receive_skb to ip_rcv */
	PODWIRE_READ_IP_TO_QUEUE_DURATION = 11,	 /* tcp_v4_rcv to the socket's queue */
	PODWIRE_READ_CALL_DURATION = 12,	 /* from the call's first copy to its end */
	PODWIRE_READ_UNATTRIBUTED_DURATION = 13, /* the rest of the call: before its first copy */
	PODWIRE_READ_FIGURES = 14,
};

/*
 * The same for a write record. A packet's way down: tcp_sendmsg -> __ip_queue_xmit -> ip_output ->
 * neigh_resolve_output -> net_dev_queue -> queue discipline -> net_dev_start_xmit -> net_dev_xmit.
 * A packet that a neighbour or a queue discipline keeps stays in L3 and L4 until it has left, so
 * L4 >= L3 >= L2 always.
 */
enum podwire_write_figure {
	PODWIRE_WRITE_PACKET_COUNT = 0,		   /* segments with payload: tcp_sock.data_segs_out */
	PODWIRE_WRITE_PACKET_SIZE = 1,		   /* their payload: tcp_sock.bytes_sent */
	PODWIRE_WRITE_RETRANSMIT_PACKET_COUNT = 2, /* tcp_sock.total_retrans */
	PODWIRE_WRITE_LOST_PACKET_COUNT = 3, /* dropped on this host on the way out, without a
					      * reason; those with one have drop records */
	PODWIRE_WRITE_L4_DURATION = 4,		   /* in tcp_sendmsg, and what L3 took outside it */
	PODWIRE_WRITE_L3_DURATION = 5,		   /* in __ip_queue_xmit, and until it has left */
	PODWIRE_WRITE_L3_LOCAL_DURATION = 6,	   /* __ip_queue_xmit to ip_output */
	PODWIRE_WRITE_L3_OUTPUT_DURATION = 7,	   /* ip_output to net_dev_queue */
	PODWIRE_WRITE_NETFILTER_COUNT = 8,
	PODWIRE_WRITE_NETFILTER_DURATION = 9,
	PODWIRE_RESOLVE_MAC_COUNT = 10,	 /* packets that waited for an unknown address */
	PODWIRE_RESOLVE_MAC_DURATION = 11, /* neigh_resolve_output to net_dev_queue */
	PODWIRE_WRITE_L2_DURATION = 12,		 /* the last two together */
	PODWIRE_WRITE_L2_ENTER_QUEUE_COUNT = 13, /* packets given to the device layer */
	PODWIRE_WRITE_L2_READY_SEND_DURATION = 14,     /* net_dev_queue to net_dev_start_xmit */
	PODWIRE_WRITE_L2_NETDEVICE_SEND_DURATION = 15, /* net_dev_start_xmit to net_dev_xmit */
	PODWIRE_WRITE_UNATTRIBUTED_DURATION = 16,      /* of the call, outside tcp_sendmsg */
	PODWIRE_WRITE_FIGURES = 17,
};

/* Which figures of a transfer record hold something; the others are 0 and were not measured. */
enum podwire_measured_flag {
	PODWIRE_MEASURED_COUNTERS = 1, /* what the sock itself counts */
	PODWIRE_MEASURED_STAGES = 2,   /* all others, as far as their hooks are attached */
};

enum podwire_connection_flag {
	PODWIRE_PREEXISTING = 1, /* opened before the collector started */
	PODWIRE_TLS = 2, /* it began with TLS, or a TLS library has moved bytes on it */
	PODWIRE_READABLE = 4, /* what it says inside TLS is seen in clear; set by user space */
};

/* Functions of TLS libraries, by what they are given and return; see programs/tls.h. */
enum podwire_tls_function {
	PODWIRE_TLS_READ = 0,	  /* (session, buffer, size), returns bytes or an error */
	PODWIRE_TLS_WRITE = 1,
	PODWIRE_TLS_READ_EX = 2,  /* (session, buffer, size, bytes), returns 1 or an error */
	PODWIRE_TLS_WRITE_EX = 3,
	PODWIRE_TLS_SENDFILE = 4, /* (session, descriptor, offset, size, flags), as the first */
	PODWIRE_TLS_HANDSHAKE = 5, /* (session), as all that follow; from here on no bytes are moved */
	PODWIRE_TLS_CONNECT = 6,
	PODWIRE_TLS_ACCEPT = 7,
	PODWIRE_TLS_AS_CLIENT = 8, /* its return is of no interest, as of all that follow */
	PODWIRE_TLS_AS_SERVER = 9,
	PODWIRE_TLS_FREE = 10,
	/* Those of rustls; see programs/rustls.h. */
	PODWIRE_RUSTLS_FILL = 11,  /* (buffer of records, socket) */
	PODWIRE_RUSTLS_FLUSH = 12, /* (records to be sent, socket) */
	PODWIRE_RUSTLS_WRITE = 13, /* (session, buffer, size), returns (0, bytes) or an error */
	PODWIRE_RUSTLS_WRITE_VECTOR = 14, /* (session, vector), likewise */
	/* (place in the session, Vec of bytes); its return is of no interest, as of what follows */
	PODWIRE_RUSTLS_RECEIVED = 15,
	PODWIRE_RUSTLS_MESSAGE = 16, /* (state, context, message) */
};

/* How a Go program passes arguments, and where it keeps which goroutine it is in. */
enum podwire_go_convention {
	PODWIRE_GO_REGISTERS = 1,
	PODWIRE_GO_STACK = 2, /* before Go 1.17, on arm64 before 1.18 */
};

/* What the counters are kept by; see struct podwire_counts. */
enum podwire_kind {
	PODWIRE_KIND_CONNECTION = 0, /* PODWIRE_ANNOUNCED */
	PODWIRE_KIND_OPEN = 1,       /* PODWIRE_CONNECTED, PODWIRE_ACCEPTED */
	PODWIRE_KIND_CLOSE = 2,      /* PODWIRE_CLOSED */
	PODWIRE_KIND_TRANSFER = 3,
	PODWIRE_KIND_PROCESS = 4,
	PODWIRE_KIND_PAYLOAD = 5,
	PODWIRE_KIND_DROP = 6,
	PODWIRE_KINDS = 7,
};

/* One per kind and CPU: every event is counted in exactly one field. */
struct podwire_counts {
	__u64 submitted;
	__u64 ring_full;   /* no room in the ring */
	__u64 map_full;    /* no memory for the state of its socket or task */
	__u64 unannounced; /* its connection's announcement had not fitted */
	__u64 unpaired;	   /* bytes inside TLS whose connection is not known */
	__u64 excluded;	   /* outside the monitoring scope */
};

struct podwire_connection_record {
	__u64 connection_id; /* unique per boot, never reused, never 0 */
	__u64 end_ns;        /* when it was decided, accepted, closed */
	__u64 duration_ns;   /* or PODWIRE_UNMEASURED */
	__u64 sequence;      /* per CPU and ring, from 0 */
	__u64 cgroup_id;     /* cgroup v2 id of the socket's or the calling task's cgroup */
	__u8 local_address[16];
	__u8 remote_address[16];
	__u32 netns;
	__u32 pid; /* thread group id of the owner; 0 when only a softirq has touched it */
	__u32 tid;
	__u32 error; /* errno, 0 on success */
	__u16 local_port;
	__u16 remote_port;
	__u16 cpu;
	__u8 event;  /* enum podwire_connection_event */
	__u8 family; /* 4 or 6 */
	__u8 role;   /* enum podwire_role */
	__u8 flags;  /* enum podwire_connection_flag */
	__u8 state;  /* TCP state the socket is in now */
	__u8 pad[5];
	__u8 comm[16];
};

/*
 * 120 bytes and the ring's own 8-byte header make 128, which divides every ring: no record wraps.
 * A figure that does not fit in 32 bits keeps its rest for the connection's next record.
 */
struct podwire_transfer_record {
	__u64 connection_id;
	__u64 end_ns;
	__u64 duration_ns; /* or PODWIRE_UNMEASURED */
	__u64 sequence;
	__u32 size; /* payload bytes moved by the call; 0 with PODWIRE_CALL_NONE only */
	__u32 pid;
	__u32 tid;
	__u16 cpu;
	__u8 direction; /* enum podwire_direction */
	__u8 call;	/* enum podwire_call */
	__u32 measured; /* enum podwire_measured_flag */
	__u32 figures[PODWIRE_WRITE_FIGURES]; /* by enum podwire_read_figure or _write_figure */
};

/* Packets that this host dropped on their way out, told with the connection's next record. */
struct podwire_drop_record {
	__u64 connection_id;
	__u64 end_ns; /* when it was told */
	__u64 sequence;
	__u32 packets;
	__u32 reason; /* enum skb_drop_reason of the running kernel; never 0 */
	__u16 cpu;
	__u8 pad[22];
};

enum podwire_process_event {
	PODWIRE_EXEC = 1,
	PODWIRE_EXIT = 2,
	PODWIRE_MAPPED = 3, /* code of a file that no process has mapped before */
};

struct podwire_process_record {
	__u64 time_ns;
	__u64 sequence;
	__u64 cgroup_id;
	__u32 pid;
	__u16 cpu;
	__u8 event; /* enum podwire_process_event */
	__u8 pad;
	__u8 comm[16];
	__u64 file; /* that was mapped: its key in `known_files` */
};

enum podwire_payload_flag {
	PODWIRE_CLEAR = 1, /* inside TLS; positions count the clear bytes of a direction from 0 */
	PODWIRE_BEGUN = 2, /* and 0 was where the clear bytes began */
	PODWIRE_ENDED = 4, /* nothing follows; the position may count the FIN */
	PODWIRE_HELLO = 8, /* of the record that a side of TLS begins with */
};

/*
 * Bytes that a call moved, for the parsers: `captured` of them follow the record. A call makes one or
 * several, in their order; what no record tells of, the sequence numbers show. An empty record is a
 * sequence number and a time only: so far had its direction come then.
 */
struct podwire_payload_record {
	__u64 connection_id;
	__u64 start_ns; /* write: of the call; read: arrival of its first byte, or 0 */
	__u64 end_ns;	/* when the call had moved it */
	__u64 sequence;
	__u32 position; /* of the first byte in its direction: TCP's sequence number; see flags */
	__u32 size;	/* bytes that this record stands for */
	__u32 captured; /* how many of them follow, from the first on */
	__u16 cpu;
	__u8 direction; /* enum podwire_direction */
	__u8 flags;	/* enum podwire_payload_flag */
};

/* What user space says of a connection's payload, by its id; see programs/payloads.h. */
struct podwire_verdict {
	__u32 position[2]; /* of reads, of writes: bytes before it are not needed */
	__u8 is_skipping[2];
	__u8 is_unwanted; /* nothing of it is */
	__u8 pad[5];
};

/*
 * The part of the monitoring scope that ports decide: a bit for each port that a server may have. Set
 * where connections to it, of clients here or of servers here, are left out.
 */
struct podwire_scope {
	__u64 of_clients[1024];
	__u64 of_servers[1024];
};

_Static_assert(sizeof(struct podwire_scope) == 16384, "scope layout");
_Static_assert(sizeof(struct podwire_payload_record) == 48, "payload record layout");
_Static_assert(sizeof(struct podwire_verdict) == 16, "verdict layout");
_Static_assert(sizeof(struct podwire_connection_record) == 120, "connection record layout");
_Static_assert(sizeof(struct podwire_transfer_record) == 120, "transfer record layout");
_Static_assert(sizeof(struct podwire_drop_record) == 56, "drop record layout");
_Static_assert(sizeof(struct podwire_process_record) == 56, "process record layout");

#endif
