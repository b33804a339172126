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
};

enum podwire_connection_flag {
	PODWIRE_PREEXISTING = 1, /* opened before the collector started */
};

/* What the counters are kept by; see struct podwire_counts. */
enum podwire_kind {
	PODWIRE_KIND_CONNECTION = 0, /* PODWIRE_ANNOUNCED */
	PODWIRE_KIND_OPEN = 1,       /* PODWIRE_CONNECTED, PODWIRE_ACCEPTED */
	PODWIRE_KIND_CLOSE = 2,      /* PODWIRE_CLOSED */
	PODWIRE_KIND_TRANSFER = 3,
	PODWIRE_KIND_PROCESS = 4,
	PODWIRE_KINDS = 5,
};

/* One per kind and CPU: every event is counted in exactly one field. */
struct podwire_counts {
	__u64 submitted;
	__u64 ring_full;   /* no room in the ring */
	__u64 map_full;    /* no memory for the state of its socket or task */
	__u64 unannounced; /* its connection's announcement had not fitted */
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

/* 56 bytes and the ring's own 8-byte header make 64, which divides every ring: no record wraps. */
struct podwire_transfer_record {
	__u64 connection_id;
	__u64 end_ns;
	__u64 duration_ns; /* or PODWIRE_UNMEASURED */
	__u64 sequence;
	__u32 size; /* payload bytes moved by the call, more than 0 */
	__u32 pid;
	__u32 tid;
	__u16 cpu;
	__u8 direction; /* enum podwire_direction */
	__u8 call;      /* enum podwire_call */
	__u64 pad;
};

enum podwire_process_event {
	PODWIRE_EXEC = 1,
	PODWIRE_EXIT = 2,
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
	__u64 pad2;
};

_Static_assert(sizeof(struct podwire_connection_record) == 120, "connection record layout");
_Static_assert(sizeof(struct podwire_transfer_record) == 56, "transfer record layout");
_Static_assert(sizeof(struct podwire_process_record) == 56, "process record layout");

#endif
