/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way up of a packet, from the device to the copy into the application's memory. Up to the
 * socket's queue it runs in one softirq, unless the application holds the sock: then TCP takes the
 * packet from the backlog later, in the application's context.
 */

/* Hooks of netfilter, in both families: include/uapi/linux/netfilter.h */
enum {
	NF_INET_PRE_ROUTING = 0,
	NF_INET_LOCAL_IN = 1,
	NF_INET_LOCAL_OUT = 3,
	NF_INET_POST_ROUTING = 4,
	NFPROTO_IPV4 = 2,
	NFPROTO_IPV6 = 10,
};

enum {
	TCP_FLAG_FIN = 1,
	TCP_FLAG_SYN = 2,
};

static __always_inline int on_device(__u64 skb)
{
	struct received_packet *packet = slot_of_received(skb);

	if (!packet)
		return 0;
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->skb = skb;
	packet->device_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_ip(__u64 skb)
{
	struct received_packet *packet = find_received(skb);

	if (packet && !packet->ip_ns)
		packet->ip_ns = bpf_ktime_get_ns();
	return 0;
}

/* A list of packets enters IP at once. */
static __always_inline int on_ip_list(void)
{
	__u32 zero = 0;
	__u64 *since = bpf_map_lookup_elem(&list_ns, &zero);

	if (since)
		*since = bpf_ktime_get_ns();
	return 0;
}

/* Of a packet that came in a list: when that entered IP, which was after the packet's arrival. */
static __always_inline void find_ip_time(struct received_packet *packet)
{
	__u32 zero = 0;
	__u64 *since;

	if (packet->ip_ns)
		return;
	since = bpf_map_lookup_elem(&list_ns, &zero);
	if (since && *since >= packet->device_ns)
		packet->ip_ns = *since;
}

static __always_inline int on_local(__u64 skb)
{
	struct received_packet *packet = find_received(skb);

	if (!packet)
		return 0;
	find_ip_time(packet);
	packet->local_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_tcp(__u64 skb)
{
	struct received_packet *packet = find_received(skb);

	if (packet && !packet->tcp_ns)
		packet->tcp_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_tcp_left(__u64 skb)
{
	struct received_packet *packet = find_received(skb);
	struct flow *flow;
	__u64 spent;

	if (!packet || !packet->tcp_ns || packet->tcp_spent_ns)
		return 0;
	spent = bpf_ktime_get_ns() - packet->tcp_ns;
	packet->tcp_spent_ns = spent;
	if (!packet->sk)
		return 0; /* in the backlog: told when it leaves that */
	flow = find_flow(packet->sk);
	if (flow)
		add_read(flow, L4_DURATION, spent);
	return 0;
}

static __always_inline void tell_received(struct flow *flow, struct received_packet *packet,
					  __u64 now)
{
	if (packet->ip_ns)
		add_read(flow, DEVICE_TO_IP_DURATION, packet->ip_ns - packet->device_ns);
	if (packet->ip_ns && packet->local_ns)
		add_read(flow, L3_RECV_DURATION, packet->local_ns - packet->ip_ns);
	if (packet->local_ns && packet->tcp_ns)
		add_read(flow, L3_LOCAL_DURATION, packet->tcp_ns - packet->local_ns);
	if (packet->ip_ns && packet->tcp_ns)
		add_read(flow, L3_DURATION, packet->tcp_ns - packet->ip_ns);
	if (packet->tcp_ns)
		add_read(flow, IP_TO_QUEUE_DURATION, now - packet->tcp_ns);
	if (packet->netfilter_count) {
		add_read(flow, NETFILTER_COUNT, packet->netfilter_count);
		add_read(flow, NETFILTER_DURATION, packet->netfilter_ns);
	}
	if (packet->tcp_spent_ns)
		add_read(flow, L4_DURATION, packet->tcp_spent_ns);
	add_read(flow, PACKET_TO_QUEUE_DURATION, now - packet->device_ns);
}

static __always_inline bool is_after(__u32 left, __u32 right)
{
	return (__s32)(left - right) > 0;
}

/* Take what ends up to a sequence number; returns the sum of what it waited. */
static __always_inline __u64 take_queued(struct flow *flow, __u32 end_seq, __u64 now)
{
	struct queued *oldest;
	__u64 waited = 0;

	for (int i = 0; i < MAX_QUEUED && flow->count; i++) {
		oldest = &flow->queue[flow->head & (MAX_QUEUED - 1)];
		if (is_after(oldest->end_seq, end_seq))
			break;
		waited += oldest->packets * now - oldest->since_ns;
		flow->head++;
		flow->count--;
	}
	return waited;
}

static __always_inline void enqueue(struct flow *flow, __u32 end_seq, __u64 now)
{
	struct queued *newest;

	if (flow->count >= MAX_QUEUED) { /* the newest two leave together */
		newest = &flow->queue[(flow->head + MAX_QUEUED - 1) & (MAX_QUEUED - 1)];
		newest->packets++;
		newest->since_ns += now;
		newest->end_seq = end_seq;
		return;
	}
	newest = &flow->queue[(flow->head + flow->count) & (MAX_QUEUED - 1)];
	newest->packets = 1;
	newest->since_ns = now;
	newest->end_seq = end_seq;
	flow->count++;
}

static __always_inline struct tcp_skb_cb *tcp_control_of(__u64 skb)
{
	return (struct tcp_skb_cb *)(skb + bpf_core_field_offset(struct sk_buff, cb));
}

/*
 * TCP begins to process a packet of a connection; its payload is about to be queued. The packet's
 * numbers, and how far the sock has received and been read, come from the hook: some can look
 * without a call.
 */
static __always_inline int on_queued(__u64 sk, __u64 skb, __u32 seq, __u32 end_seq, __u32 rcv_nxt,
				     __u32 copied_seq)
{
	struct received_packet *packet;
	struct flow *flow = find_flow(sk);
	__u32 length = end_seq - seq;
	__u64 now;
	__u8 flags;

	if (!flow)
		return 0;
	now = bpf_ktime_get_ns();
	packet = find_received(skb);
	if (packet && !packet->sk) {
		packet->sk = sk;
		if (flow->is_seen_in_ip && !packet->ip_ns && !packet->local_ns && !packet->tcp_ns)
			count_unseen();
		tell_received(flow, packet, now);
	}
	if (!length)
		return 0;
	if (length <= 2) { /* perhaps no bytes, but what counts as one */
		flags = BPF_CORE_READ(tcp_control_of(skb), tcp_flags);
		if (length == !!(flags & TCP_FLAG_FIN) + !!(flags & TCP_FLAG_SYN))
			return 0;
	}
	if (!is_after(end_seq, rcv_nxt))
		return 0; /* received before */
	if (flow->count) /* read without a copy that is seen: splice, kernel TLS */
		take_queued(flow, copied_seq, now);
	enqueue(flow, end_seq, now);
	return 0;
}

/*
 * A packet has come while the application holds the sock. One that did not get into the backlog was
 * added to the packet before it there, or found no room: TCP sees it no more.
 */
static __always_inline int on_backlog(__u64 sk, __u64 skb)
{
	struct received_packet *packet = find_received(skb);
	struct flow *flow;

	if (!packet || packet->sk || !packet->tcp_ns ||
	    (__u64)BPF_CORE_READ((struct sock *)sk, sk_backlog.tail) == skb)
		return 0;
	packet->sk = sk;
	flow = find_flow(sk);
	if (flow)
		tell_received(flow, packet, bpf_ktime_get_ns());
	return 0;
}

/* When the oldest packet in a socket's queue came there; 0 if that is not known. */
static __always_inline __u64 oldest_queued(struct flow *flow)
{
	struct queued *oldest = &flow->queue[flow->head & (MAX_QUEUED - 1)];

	return flow->count && oldest->packets == 1 ? oldest->since_ns : 0;
}

/* Bytes of a received packet, up to a sequence number, are copied to the application. */
static __always_inline int on_copied(__u64 sk, __u32 end_seq)
{
	struct task_stages *slot;
	struct flow *flow;
	__u64 now, waited, arrived;
	__u32 tid;

	flow = find_flow(sk);
	if (!flow)
		return 0;
	now = bpf_ktime_get_ns();
	arrived = oldest_queued(flow);
	waited = take_queued(flow, end_seq, now);
	if (waited)
		add_read(flow, PACKET_FROM_QUEUE_DURATION, waited);
	tid = current_tid();
	slot = slot_of_task(tid);
	if (!slot)
		return 0;
	if (slot->tid != tid) {
		__builtin_memset(slot, 0, sizeof(*slot));
		slot->tid = tid;
	}
	if (!slot->first_copy_ns) {
		slot->first_copy_ns = now;
		slot->arrived_ns = arrived;
	}
	return 0;
}

static __always_inline bool is_on_the_way_up(__u8 hook)
{
	return hook == NF_INET_PRE_ROUTING || hook == NF_INET_LOCAL_IN;
}

static __always_inline int on_netfilter(__u64 skb, __u8 family, __u8 hook)
{
	struct received_packet *received_packet;
	struct sent_packet *sent_packet;

	if (family != NFPROTO_IPV4 && family != NFPROTO_IPV6)
		return 0;
	if (is_on_the_way_up(hook)) {
		received_packet = find_received(skb);
		if (!received_packet)
			return 0;
		find_ip_time(received_packet);
		received_packet->netfilter_start_ns = bpf_ktime_get_ns();
	} else if (hook == NF_INET_LOCAL_OUT || hook == NF_INET_POST_ROUTING) {
		sent_packet = find_sent(skb);
		if (sent_packet && !sent_packet->queue_ns)
			sent_packet->netfilter_start_ns = bpf_ktime_get_ns();
	}
	return 0;
}

static __always_inline int on_netfilter_left(__u64 skb, __u8 family, __u8 hook)
{
	struct received_packet *received_packet;
	struct sent_packet *sent_packet;

	if (family != NFPROTO_IPV4 && family != NFPROTO_IPV6)
		return 0;
	if (is_on_the_way_up(hook)) {
		received_packet = find_received(skb);
		if (!received_packet || !received_packet->netfilter_start_ns)
			return 0;
		received_packet->netfilter_ns +=
			bpf_ktime_get_ns() - received_packet->netfilter_start_ns;
		received_packet->netfilter_count++;
		received_packet->netfilter_start_ns = 0;
	} else if (hook == NF_INET_LOCAL_OUT || hook == NF_INET_POST_ROUTING) {
		sent_packet = find_sent(skb);
		if (!sent_packet || !sent_packet->netfilter_start_ns)
			return 0;
		sent_packet->netfilter_ns += bpf_ktime_get_ns() - sent_packet->netfilter_start_ns;
		sent_packet->netfilter_count++;
		sent_packet->netfilter_start_ns = 0;
	}
	return 0;
}
