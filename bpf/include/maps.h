/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* All state, and the maps that every object has; where sockets and tasks keep theirs is told in
 * storage.h and hashes.h, of which an object includes one. */
#ifndef PODWIRE_MAPS_H
#define PODWIRE_MAPS_H

/* How far the life of a socket has come. */
enum socket_stage {
	STAGE_NEW = 0,
	STAGE_CONNECTING = 1, /* SYN sent, not decided */
	STAGE_OPEN = 2,       /* established */
	STAGE_CLOSED = 3,     /* failed, or closed by this end: nothing more is counted */
};

enum socket_announcement {
	ANNOUNCED_NEVER = 0,
	ANNOUNCED_WITHOUT_OWNER = 1,
	ANNOUNCED = 2,
};

/* The process context that a connection is attributed to. */
struct owner {
	__u64 cgroup_id;
	__u32 pid; /* 0: no process has touched it yet */
	__u32 tid;
	char comm[16];
};

/* How much of a sock's own counters records have told. */
struct told {
	__u64 bytes_in;
	__u64 bytes_out;
	__u32 packets_in;
	__u32 packets_out;
	__u32 retransmits;
	__u32 pad;
};

/* What is told of a sock's own counters with one record. */
struct counted {
	__u64 packet_bytes;
	__u32 packets;
	__u32 retransmits;
	__u32 is_known;
	__u32 pad;
};

enum { FRAME_HEADER = 9 };

/* Where the frames of HTTP/2 lie in what one direction says; see programs/framing.h. Two threads that
 * write at once may spoil it, which its next header shows. */
struct framing {
	__u32 position; /* TCP's number of the next byte */
	__u32 left;	/* bytes that are left of the frame under way */
	__u8 header[32]; /* of the next frame, as far as it came; as long as masks of the verifier */
	__u8 have; /* how many bytes of that */
	__u8 is_followed;
	__u8 is_body; /* what is left is not copied */
	__u8 pad;
};

/* The last bytes of a direction that the ring had no room for. */
struct unseen {
	__u64 end_ns;	   /* when they had moved */
	__u32 position;	   /* of the byte after them */
	__u32 is_untold; /* no record behind them has shown it */
};

struct socket_state {
	__u64 connection_id;
	__u64 start_ns; /* of the connect; 0 when not seen */
	struct owner owner;
	struct told told;
	__u8 stage;        /* enum socket_stage */
	__u8 role;         /* enum podwire_role */
	__u8 flags;        /* enum podwire_connection_flag */
	__u8 announcement; /* enum socket_announcement */
	__u8 is_ready;     /* announced with owner, nothing left to settle: the fast path */
	__u8 is_waiting;   /* established by the kernel, not yet taken by an application */
	__u8 is_unqueued;  /* waiting, but `accept_queue` had no room */
	__u8 is_own;       /* the collector's own: not recorded */
	__u8 payload;      /* enum payload_state */
	__u8 looks;        /* calls that were looked at in vain */
	__u8 looked_at;    /* direction of the last call while undecided */
	__u8 is_http2;
	__u32 scope; /* number of the monitoring scope that it was looked at by */
	__u8 is_left_out; /* outside of that */
	__u8 is_headed[2]; /* of reads, of writes: only the header of its hello's record has come */
	__u8 pad;
	__u16 greeting[2]; /* likewise: bytes that are left of its hello; see GREETED */
	struct framing framing[2];
	struct unseen unseen[2];
};

/* Whether the bytes of a connection go to user space; see programs/payloads.h. */
enum payload_state {
	PAYLOAD_UNDECIDED = 0,
	PAYLOAD_WANTED = 1,
	PAYLOAD_UNWANTED = 2,
};

/* The call of a TLS library that a task is in, and what system calls inside it have shown. */
struct tls_call {
	__u64 session; /* 0: none */
	__u64 stack;   /* where it was entered */
	__u64 connection_id; /* on which its bytes were moved; 0: none were */
	__u64 arrived_ns;    /* of the first that were read; 0: not known */
	__u64 greeted_id; /* whose ClientHello the task has read since it read or wrote anything */
	__u64 asking;	  /* session of a client whose ClientHello is about to be written */
	__u64 asking_ns;
	__u32 askers;	 /* sessions of which that is true; only one is kept */
	__u8 is_first;	 /* nothing had been moved on the connection before */
	__u8 is_unclear; /* there was more than one at a time */
	__u8 is_left_out; /* what its task moved last was outside the monitoring scope */
	__u8 pad;
};

/* What becomes of the bytes of a call. */
enum standing {
	STANDING_UNANNOUNCED = 0, /* nobody knows their connection */
	STANDING_ANNOUNCED = 1,
	STANDING_LEFT_OUT = 2, /* outside the monitoring scope */
};

/* What happens inside the system call that a task is in. */
struct call_state {
	__u64 start_ns; /* of a close: when the last file was closed, if any */
	__u64 connection_id;
	__u64 sock; /* to whom */
	__u64 address;
	struct counted counted; /* by the sock, in the call */
	__u32 address_length; /* of transfers: how many iovecs or messages `address` has */
	__u32 messages;	      /* of several: how many have moved */
	__u32 size; /* payload bytes moved so far */
	__u8 kind;  /* enum podwire_call or enum other_call */
	__u8 is_active;
	__u8 direction;
	__u8 standing; /* enum standing */
	__u8 is_fresh_connect; /* the socket was unconnected when connect was called */
	__u8 has_sent_syn;
	__u8 held_kind; /* enum podwire_kind + 1 of `held`; 0: nothing held */
	__u8 is_told; /* one of several equal programs has told of these bytes */
	struct tls_call tls; /* not used in hashes.h */
	/* A connect's failure or a close, to be completed with the end of the call. */
	struct podwire_connection_record held;
};

/* Calls that move no bytes themselves; numbers above every podwire_call. */
enum other_call {
	CALL_CONNECT = 64,
	CALL_ACCEPT = 65,
	CALL_CLOSE = 66,
	CALL_MAP = 67,
};

/* An established connection that no application has accepted, by the address of its sock; or one that
 * was accepted although no handshake was seen, until it is touched. */
struct waiting {
	__u64 connection_id; /* 0: accepted already */
	__u64 established_ns;
};

struct listener {
	__u32 netns;
	__u32 port;
};

/* accept() returns an fd, which leads to a sock that the verifier does not know: storage of its own
 * could be read, not written. Deleting the entry here is what says "accepted", once. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct waiting);
} accept_queue SEC(".maps");

/* Connects that were seen to begin and of which nobody has told how they ended, by connection id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} undecided SEC(".maps");

/* Ports listened on when the collector started; tells the role of connections older than it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct listener);
	__type(value, __u8);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} transfers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 32 << 20);
} payloads SEC(".maps");

enum {
	PIECE_BYTES = 8192, /* power of two */
	PIECES = 8,	    /* a program each that may be away inside its own: see TURNS */
	MAX_VERDICTS = 65536,
};

struct iovec {
	__u64 base;
	__u64 length;
};

/* The bytes of a call in the memory of its task. */
struct buffers {
	struct iovec now; /* what is left of the buffer under way */
	__u64 vector;	  /* the buffers after it */
	__u64 count;
};

/* A copy under way. In a map, because of what is read from there the verifier remembers nothing: it
 * need not follow every step of a copy on its own. */
struct copying {
	struct buffers from;
	__u32 size;    /* bytes that are left */
	__u32 skipped; /* of these, how many are not needed first */
	__u32 filled;  /* bytes in the piece */
	__u32 passed;  /* bytes behind these that are not copied */
	__u32 least;   /* length from which on the content of a frame is not */
	__u32 is_untold; /* the ring had no room for the last of it */
	struct framing framing;
};

/* Where a record of the ring `payloads` is put together: its length is known only then. Longer than
 * a piece, so that the verifier sees every copy end inside: masks know only powers of two. */
struct piece {
	struct podwire_payload_record record;
	__u8 data[3 * PIECE_BYTES];
	struct copying copying;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PIECES);
	__type(key, __u32);
	__type(value, struct piece);
} pieces SEC(".maps");

/* Next sequence number of the ring `payloads`. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} payload_sequence SEC(".maps");

/* Written by user space; one that is evicted costs only what it would have saved. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_VERDICTS);
	__type(key, __u64);
	__type(value, struct podwire_verdict);
} verdicts SEC(".maps");

/* The clear bytes inside a TLS connection; an entry is of a connection with PODWIRE_TLS only. */
struct tls_stream {
	__u32 position[2]; /* of the next read, write */
	__u64 arrived_ns;  /* of what was read last; 0: not known */
	__u8 payload;	   /* enum payload_state */
	__u8 looks;
	__u8 looked_at;
	__u8 is_begun; /* seen from its first byte on */
	__u8 pad[4];
	struct unseen unseen[2]; /* of reads, of writes */
};

/* By connection id; the core ends them with the connection. Like all maps of probes it is allocated at
 * once, because kernels before v6.1 warn of others. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, __u64);
	__type(value, struct tls_stream);
} tls_streams SEC(".maps");

struct tls_session_key {
	__u64 session; /* address of the library's own state of it */
	__u32 pid;
	__u32 pad;
};

struct tls_session {
	__u64 connection_id; /* 0: not known yet */
	__u8 role;	     /* enum podwire_role; 0: not known */
	__u8 is_asking;	     /* its ClientHello was to be written next */
	__u8 is_lost;	     /* it has moved bytes and its connection is not known */
	__u8 pad[5];
};

/* One that is evicted is known again at the next system call that is made for it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 17);
	__type(key, struct tls_session_key);
	__type(value, struct tls_session);
} tls_sessions SEC(".maps");

/* Files of which code was mapped and user space was told; it deletes what it wants to be told of
 * again. One that is evicted is only told twice. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u8);
} known_files SEC(".maps");

/* The monitoring scope, written by user space; see scope.h. Its number comes last and is another
 * for every change; 0: there was none, and everything is watched. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct podwire_scope);
} scopes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} scope_number SEC(".maps");

/* Processes that user space has looked at and does not want to hear of, by process id. All others are
 * watched from their first call on; of one that is evicted user space leaves out the records. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u8);
} refused SEC(".maps");

/* Connections of which user space knows nothing more, because they were outside the scope, by id: it
 * may have changed twice since anybody touched them. One that is evicted stays as unknown as that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} let_go SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PODWIRE_KINDS);
	__type(key, __u32);
	__type(value, struct podwire_counts);
} counts SEC(".maps");

/* Counters are bumped atomically although they are per CPU: a softirq may interrupt the update. */
#define count(kind, field)                                                                         \
	({                                                                                         \
		__u32 key_ = (kind);                                                               \
		struct podwire_counts *counts_ = bpf_map_lookup_elem(&counts, &key_);              \
		if (counts_)                                                                       \
			__sync_fetch_and_add(&counts_->field, 1);                                  \
	})

/* Set by user space before loading. */
const volatile __u32 podwire_own_pid = 0; /* process whose traffic is not recorded; 0: none */
const volatile __u64 podwire_id_base = 0; /* CLOCK_MONOTONIC nanoseconds at load */
const volatile __u32 podwire_payloads = 0; /* whether messages are captured for the parsers */
const volatile __u32 podwire_tls = 0; /* whether files with code are told of when they are mapped */

static __always_inline bool is_own_process(void)
{
	return podwire_own_pid && bpf_get_current_pid_tgid() >> 32 == podwire_own_pid;
}

/*
 * Connection id = podwire_id_base + a counter. Unique for the life of the boot: one increment of a
 * shared word takes more than a nanosecond, so every id of this run is below base + nanoseconds
 * since load, and the base of a later run is above that.
 */

/* Never used; puts the records and enums of events.h into the object's BTF for collector/abi.py. */
struct podwire_abi {
	struct podwire_connection_record connection;
	struct podwire_transfer_record transfer;
	struct podwire_process_record process;
	struct podwire_payload_record payload;
	struct podwire_verdict verdict;
	struct podwire_drop_record drop;
	struct podwire_counts counts;
	struct podwire_scope scope;
	enum podwire_payload_flag payload_flag;
	enum podwire_connection_event connection_event;
	enum podwire_role role;
	enum podwire_direction direction;
	enum podwire_call call;
	enum podwire_read_figure read_figure;
	enum podwire_write_figure write_figure;
	enum podwire_measured_flag measured_flag;
	enum podwire_connection_flag connection_flag;
	enum podwire_kind kind;
	enum podwire_process_event process_event;
	enum podwire_tls_function tls_function;
	enum podwire_go_convention go_convention;
};
struct podwire_abi *podwire_abi = 0;

#endif
