/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where the hooks of the layers below a call leave what they measured, and where a call's record
 * takes it from: by the address of the sock, because a packet that leaves in a softirq has no
 * thread, and because kprobes can keep nothing in a sock's own storage. Shared between a core
 * object, which makes and ends the entries, and podwire-stages.bpf.o, which adds to them.
 */
#ifndef PODWIRE_FLOWS_H
#define PODWIRE_FLOWS_H

enum {
	MAX_FLOWS = 1 << 18,
	MAX_QUEUED = 16, /* power of two */
	MAX_SEGMENTED = 16, /* power of two */
	MAX_TASKS = 1 << 14, /* power of two */
	MAX_LOSSES = 1 << 13,
	MAX_REASONS = 8, /* of one connection */
	FIGURE_MAX = 0xfffffffe, /* what one record can carry; the next value says "not measured" */
};

/* Packets in a socket's queue, up to a sequence number. */
struct queued {
	__u32 end_seq;
	__u32 packets;
	__u64 since_ns; /* sum over the packets; modulo 2^64, which differences survive */
};

/* A packet that may be segmented below the queue discipline: its segments have only its sock, and
 * numbers of its bytes. */
struct segmented {
	__u64 queue_ns; /* up to when its time is told */
	__u64 left_ns;	/* when IP was left; 0: not yet, or not known */
	__u32 seq;	/* of its first byte */
	__u32 size;	/* of its payload, at most; 0: none is kept here */
};

struct flow {
	/* Measured and not told yet. Added to atomically, and taken from by subtraction: two that
	 * take at once leave a negative rest, which later sums fill up. */
	__s64 read[PODWIRE_READ_FIGURES];
	__s64 write[PODWIRE_WRITE_FIGURES];
	struct segmented segmented[MAX_SEGMENTED]; /* in a ring, the newest at `last_segmented` */
	/* Oldest first, in a ring. Only touched with the sock's lock held. */
	struct queued queue[MAX_QUEUED];
	__u32 head;
	__u32 count;
	__u32 last_segmented;
	__u32 is_seen_in_ip; /* one of its packets was, on both ends of it */
	__u64 told_ns[2]; /* when a read, a write was last told of; 0: never */
	__s64 explained;  /* packets in `losses`, added to and taken from like the figures */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_FLOWS);
	__type(key, __u64);
	__type(value, struct flow);
} flows SEC(".maps");

/*
 * Packets that a flow has lost for a reason: the first of them makes the entry of the reason at the
 * flow's next free place, and that two cannot make the same entry is all the locking there is. Few
 * connections have any. A loop over places counts in a variable of its own, because v6.1's verifier
 * sees no end of one that counts in the key.
 */
struct loss_key {
	__u64 sk;
	__u64 place;
};

struct loss {
	__s64 packets; /* not told yet */
	__u32 reason;  /* enum skb_drop_reason */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOSSES);
	__type(key, struct loss_key);
	__type(value, struct loss);
} losses SEC(".maps");

/* What the stages know of the call that a thread is in. A slot belongs to the thread that used it
 * last: no entry is ever made or deleted, and who finds another's has lost its own. */
struct task_stages {
	__u64 sock;	  /* being written to by tcp_sendmsg; 0: none */
	__u64 send_ns;	  /* since when */
	__u64 sent_ns;	  /* spent there since the last record */
	__u64 first_send_ns;
	__u64 first_copy_ns; /* of received bytes since the last record */
	__u64 arrived_ns;    /* when these had been queued; 0: not known */
	__u32 tid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TASKS);
	__type(key, __u32);
	__type(value, struct task_stages);
} tasks SEC(".maps");

static __always_inline struct flow *find_flow(__u64 sk)
{
	return bpf_map_lookup_elem(&flows, &sk);
}

static __always_inline struct task_stages *slot_of_task(__u32 tid)
{
	__u32 key = tid & (MAX_TASKS - 1);

	return bpf_map_lookup_elem(&tasks, &key);
}

#endif
