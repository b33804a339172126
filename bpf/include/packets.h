/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets under way, by the address of their sk_buff: it says which bucket, and each bucket has room
 * for a few. A slot belongs to the packet that used it last: nothing is ever deleted, so packets
 * that are freed, forwarded or never read leave nothing behind and no rate can fill it. A packet
 * whose slot was taken by another is not measured; a new one takes that of the oldest. The address
 * is checked on every use, and times of the way down and the way up are kept apart, because loopback
 * and veth hand the same sk_buff from one to the other.
 */
#ifndef PODWIRE_PACKETS_H
#define PODWIRE_PACKETS_H

enum {
	BUCKET_BITS = 12,
	SLOTS = 4, /* power of two */
};

enum sent_told {
	TOLD_LOCAL = 1,
	TOLD_OUTPUT = 2,
	TOLD_NETFILTER = 4,
	TOLD_ENTERED = 8, /* the device layer */
};

/* Times are of the entry into each function; 0: not reached. */
struct sent_packet {
	__u64 skb;
	__u64 sk;
	__u64 ip_ns;	    /* __ip_queue_xmit, inet6_csk_xmit; then up to when that is told */
	__u64 output_ns;    /* ip_output, ip6_output */
	__u64 neighbour_ns; /* neigh_resolve_output */
	__u64 queue_ns;	    /* net_dev_queue */
	__u64 driver_ns;    /* net_dev_start_xmit */
	__u64 left_ns;	    /* return from __ip_queue_xmit */
	__u64 netfilter_start_ns;
	__u64 netfilter_ns;
	__u16 netfilter_count;
	__u16 driver_cpu;  /* that is in the driver */
	__u8 told;	   /* enum sent_told */
	__u8 depth;	   /* of devices upon devices inside the first driver */
	__u8 place; /* 1 + that in flow.segmented of itself, or of what it was cut from; 0: none */
	__u8 is_segment : 1; /* cut below the queue discipline */
	__u8 has_left : 1;   /* the driver has it */
	__u8 is_of_call : 1; /* tcp_sendmsg() has sent it, and tells its time in layer 4 */
};

struct received_packet {
	__u64 skb;
	__u64 sk;	 /* whose queue it went to; 0: not yet */
	__u64 device_ns; /* netif_receive_skb */
	__u64 ip_ns;	 /* ip_rcv, ipv6_rcv, or the list they came in */
	__u64 local_ns;	 /* ip_local_deliver, ip6_input */
	__u64 tcp_ns;	 /* tcp_v4_rcv, tcp_v6_rcv */
	__u64 tcp_spent_ns;
	__u64 netfilter_start_ns;
	__u64 netfilter_ns;
	__u32 netfilter_count;
	__u32 pad;
};

struct sent_bucket {
	struct sent_packet slots[SLOTS];
};

struct received_bucket {
	struct received_packet slots[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << BUCKET_BITS);
	__type(key, __u32);
	__type(value, struct sent_bucket);
} sent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << BUCKET_BITS);
	__type(key, __u32);
	__type(value, struct received_bucket);
} received SEC(".maps");

/* When this CPU last began to receive a list of packets. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} list_ns SEC(".maps");

/*
 * Packets that were seen below and above IP but not in it, where others of their connection were. The
 * kernel leaves out the programs of kprobes in an interrupt that came while one was running on that
 * CPU, or while a system call used a map (bpf_prog_active in trace_call_bpf()).
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} unseen_in_ip SEC(".maps");

static __always_inline void count_unseen(void)
{
	__u32 zero = 0;
	__u64 *unseen = bpf_map_lookup_elem(&unseen_in_ip, &zero);

	if (unseen)
		__sync_fetch_and_add(unseen, 1);
}

/* Fibonacci hashing; of the lower half, because the verifier lets no pointer be multiplied. */
static __always_inline __u32 bucket_of_packet(__u64 skb)
{
	__u32 half = skb;

	asm volatile("" : "+w"(half)); /* a 32-bit move, no shift */
	return half * 0x9e3779b1U >> (32 - BUCKET_BITS);
}

/* Where a sk_buff keeps what does not fit in itself. */
static __always_inline struct skb_shared_info *shared_info(struct sk_buff *skb)
{
	return (struct skb_shared_info *)(skb->head + skb->end);
}

/* Of what this host sends over TCP, within whatever tunnel. */
static __always_inline struct tcphdr *tcp_header_of(struct sk_buff *skb)
{
	__u16 offset = BPF_CORE_READ_BITFIELD(skb, encapsulation) ? skb->inner_transport_header :
								    skb->transport_header;

	return (struct tcphdr *)(skb->head + offset);
}

static __always_inline __u32 sequence_of(struct sk_buff *skb)
{
	struct tcphdr *header = tcp_header_of(skb);

	return bpf_ntohl(BPF_CORE_READ(header, seq));
}

/* Since when a slot is in use; 0: its packet is done with. */
static __always_inline __u64 since_of_sent(const struct sent_packet *packet)
{
	if (!packet->skb || (packet->has_left && (!packet->ip_ns || packet->left_ns)))
		return 0;
	return packet->queue_ns ? packet->queue_ns : packet->ip_ns;
}

static __always_inline __u64 since_of_received(const struct received_packet *packet)
{
	return packet->device_ns;
}

/* The slot of a packet in its bucket; or, unless only_found, that of the oldest for it to take. */
#define DEFINE_SLOTS(kind)                                                                         \
	static __always_inline struct kind##_packet *look_up_##kind(__u64 skb, bool only_found)    \
	{                                                                                          \
		__u32 key = bucket_of_packet(skb), oldest = 0;                                     \
		struct kind##_bucket *bucket = bpf_map_lookup_elem(&kind, &key);                   \
		__u64 since, first = ~0ULL;                                                        \
                                                                                                   \
		if (!bucket)                                                                       \
			return 0;                                                                  \
		for (__u32 i = 0; i < SLOTS; i++) {                                                \
			if (bucket->slots[i].skb == skb)                                           \
				return &bucket->slots[i];                                          \
			since = since_of_##kind(&bucket->slots[i]);                                \
			if (since < first) {                                                       \
				first = since;                                                     \
				oldest = i;                                                        \
			}                                                                          \
		}                                                                                  \
		return only_found ? 0 : &bucket->slots[oldest & (SLOTS - 1)];                      \
	}                                                                                          \
	static __always_inline struct kind##_packet *find_##kind(__u64 skb)                        \
	{                                                                                          \
		return look_up_##kind(skb, true);                                                  \
	}                                                                                          \
	static __always_inline struct kind##_packet *slot_of_##kind(__u64 skb)                     \
	{                                                                                          \
		return look_up_##kind(skb, false);                                                 \
	}

DEFINE_SLOTS(sent)
DEFINE_SLOTS(received)

#define add_read(flow, figure, value)                                                              \
	__sync_fetch_and_add(&(flow)->read[PODWIRE_READ_##figure], (__s64)(value))
#define add_write(flow, figure, value)                                                             \
	__sync_fetch_and_add(&(flow)->write[PODWIRE_WRITE_##figure], (__s64)(value))

#endif
