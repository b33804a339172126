/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way down of a packet. Most of it happens inside one call of __ip_queue_xmit(), with the sock
 * locked; a neighbour or a queue discipline may keep the packet and let it go in another context.
 * Each function here is the body of a hook; it takes addresses, because not every hook can follow
 * them.
 */

static __always_inline __u32 current_tid(void)
{
	return bpf_get_current_pid_tgid();
}

/* tcp_sendmsg() was entered. */
static __always_inline int on_send(__u64 sk)
{
	__u32 tid = current_tid();
	struct task_stages *slot = slot_of_task(tid);

	if (!slot)
		return 0;
	if (slot->tid != tid) {
		slot->tid = tid;
		slot->sent_ns = 0;
		slot->first_send_ns = 0;
		slot->first_copy_ns = 0;
	}
	slot->sock = sk;
	slot->send_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_sent(__u64 sk, long result)
{
	__u32 tid = current_tid();
	struct task_stages *slot = slot_of_task(tid);
	struct flow *flow;
	__u64 spent;

	if (!slot || slot->tid != tid || slot->sock != sk || !slot->send_ns)
		return 0;
	spent = bpf_ktime_get_ns() - slot->send_ns;
	if (result > 0) { /* else no record of the call will follow */
		if (!slot->first_send_ns)
			slot->first_send_ns = slot->send_ns;
		slot->sent_ns += spent;
	}
	slot->send_ns = 0;
	slot->sock = 0;
	flow = find_flow(sk);
	if (flow)
		add_write(flow, L4_DURATION, spent);
	return 0;
}

/* Whether tcp_sendmsg() of this thread is what sends for the sock. */
static __always_inline bool is_sending(__u64 sk)
{
	__u32 tid = current_tid();
	struct task_stages *slot = slot_of_task(tid);

	return slot && slot->tid == tid && slot->sock == sk;
}

static __always_inline int on_ip_xmit(__u64 sk, __u64 skb)
{
	struct sent_packet *packet = slot_of_sent(skb);

	if (!packet)
		return 0;
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->skb = skb;
	packet->sk = sk;
	packet->is_of_call = is_sending(sk);
	packet->ip_ns = bpf_ktime_get_ns();
	return 0;
}

/* Counted wherever the flow is known, because not everything that enters a queue leaves it. */
static __always_inline void tell_entered(struct flow *flow, struct sent_packet *packet)
{
	if (!(packet->told & TOLD_ENTERED))
		add_write(flow, L2_ENTER_QUEUE_COUNT, 1);
	packet->told |= TOLD_ENTERED;
}

/* What is known of layer 3 and not told yet. */
static __always_inline void tell_ip(struct flow *flow, struct sent_packet *packet)
{
	if (packet->output_ns && packet->ip_ns && !(packet->told & TOLD_LOCAL)) {
		packet->told |= TOLD_LOCAL;
		add_write(flow, L3_LOCAL_DURATION, packet->output_ns - packet->ip_ns);
	}
	if (packet->queue_ns && packet->output_ns && !(packet->told & TOLD_OUTPUT)) {
		packet->told |= TOLD_OUTPUT;
		add_write(flow, L3_OUTPUT_DURATION, packet->queue_ns - packet->output_ns);
	}
	if (packet->netfilter_count && !(packet->told & TOLD_NETFILTER)) {
		packet->told |= TOLD_NETFILTER;
		add_write(flow, NETFILTER_COUNT, packet->netfilter_count);
		add_write(flow, NETFILTER_DURATION, packet->netfilter_ns);
	}
}

static __always_inline struct segmented *segmented_at(struct flow *flow, __u8 place)
{
	return &flow->segmented[(place - 1) & (MAX_SEGMENTED - 1)];
}

/* Kept when a packet enters a queue, should it be cut up below: which bytes it has. */
static __always_inline void keep_segmented(struct flow *flow, struct sent_packet *packet, __u32 seq,
					   __u32 size)
{
	__u32 place = (flow->last_segmented + 1) & (MAX_SEGMENTED - 1);
	struct segmented *segmented = &flow->segmented[place];

	segmented->queue_ns = packet->queue_ns;
	segmented->left_ns = packet->left_ns;
	segmented->seq = seq;
	segmented->size = size;
	flow->last_segmented = place;
	packet->place = place + 1;
}

/* 1 + the place of the packet that a byte was sent in last; 0 if it is not kept any more. */
static __always_inline __u32 place_of_segmented(struct flow *flow, __u32 seq)
{
	__u32 place = flow->last_segmented;

	for (__u32 i = 0; i < MAX_SEGMENTED; i++, place--) {
		struct segmented *segmented = &flow->segmented[place & (MAX_SEGMENTED - 1)];

		if (seq - segmented->seq < segmented->size)
			return (place & (MAX_SEGMENTED - 1)) + 1;
	}
	return 0;
}

/* The time of a packet in IP, up to now, as far as it is not told yet. */
static __always_inline void tell_in_ip(struct flow *flow, struct sent_packet *packet, __u64 now)
{
	__u64 spent = now - packet->ip_ns;

	add_write(flow, L3_DURATION, spent);
	if (!packet->is_of_call)
		add_write(flow, L4_DURATION, spent);
	packet->ip_ns = now;
}

static __always_inline int on_ip_left(__u64 sk, __u64 skb)
{
	struct sent_packet *packet = find_sent(skb);
	struct flow *flow;
	__u64 now;

	if (!packet || packet->sk != sk || !packet->ip_ns || packet->left_ns)
		return 0;
	now = bpf_ktime_get_ns();
	packet->left_ns = now;
	flow = find_flow(sk);
	if (!flow)
		return 0;
	flow->is_seen_in_ip = 1;
	tell_ip(flow, packet);
	tell_in_ip(flow, packet, now);
	if (packet->queue_ns)
		tell_entered(flow, packet);
	if (packet->place)
		segmented_at(flow, packet->place)->left_ns = now;
	return 0;
}

static __always_inline int on_ip_output(__u64 skb)
{
	struct sent_packet *packet = find_sent(skb);

	if (packet && !packet->output_ns)
		packet->output_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_neighbour(__u64 skb)
{
	struct sent_packet *packet = find_sent(skb);

	if (packet && !packet->neighbour_ns && !packet->queue_ns)
		packet->neighbour_ns = bpf_ktime_get_ns();
	return 0;
}

/*
 * Given to the device layer. A packet that comes here after it has left IP was kept by a neighbour
 * whose address was not known. Without the hooks above, its way begins here. `size`: if it may be
 * cut up below, that of its payload at most, from the number `seq` on.
 */
static __always_inline int on_device_queue(__u64 skb, __u64 sk, __u32 seq, __u32 size)
{
	struct sent_packet *packet;
	struct flow *flow = 0;
	__u64 now;

	if (!sk)
		return 0;
	packet = slot_of_sent(skb);
	if (!packet)
		return 0;
	now = bpf_ktime_get_ns();
	/* An address may be that of an earlier packet: one that has left, or was segmented and so
	 * never reached a driver itself, or that another CPU has given to a driver which has freed
	 * it, and not come back from there yet. */
	if (packet->skb != skb || packet->sk != sk ||
	    (packet->queue_ns && (packet->has_left || !packet->driver_ns ||
				  packet->driver_cpu != (__u16)bpf_get_smp_processor_id()))) {
		flow = find_flow(sk);
		if (!flow)
			return 0;
		__builtin_memset(packet, 0, sizeof(*packet));
		packet->skb = skb;
		packet->sk = sk;
		if (flow->is_seen_in_ip) {
			/* What it waits for from now on is known: nearly all of its time in IP. */
			packet->left_ns = now;
			count_unseen();
		}
	} else if (packet->queue_ns) {
		return 0; /* a device upon a device */
	}
	packet->queue_ns = now;
	if (!flow && (size || (packet->neighbour_ns && packet->left_ns)))
		flow = find_flow(sk);
	if (!flow)
		return 0;
	if (packet->neighbour_ns && packet->left_ns) {
		__sync_fetch_and_add(&flow->write[PODWIRE_RESOLVE_MAC_COUNT], 1);
		__sync_fetch_and_add(&flow->write[PODWIRE_RESOLVE_MAC_DURATION],
				     now - packet->neighbour_ns);
	}
	tell_entered(flow, packet);
	if (size)
		keep_segmented(flow, packet, seq, size);
	return 0;
}

static __always_inline void enter_driver(struct sent_packet *packet)
{
	packet->driver_ns = bpf_ktime_get_ns();
	packet->driver_cpu = bpf_get_smp_processor_id();
}

static __always_inline int on_driver(struct sk_buff *buffer, __u64 sk)
{
	__u64 skb = (__u64)buffer;
	struct segmented *segmented;
	struct sent_packet *packet;
	struct flow *flow;
	__u32 place;

	if (!sk)
		return 0;
	packet = slot_of_sent(skb);
	if (!packet)
		return 0;
	if (packet->skb == skb && packet->sk == sk && packet->queue_ns && !packet->has_left) {
		if (packet->driver_ns)
			packet->depth++;
		else
			enter_driver(packet);
		return 0;
	}
	flow = find_flow(sk);
	if (!flow)
		return 0;
	place = place_of_segmented(flow, sequence_of(buffer));
	if (!place)
		return 0;
	segmented = segmented_at(flow, place);
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->skb = skb;
	packet->sk = sk;
	packet->place = place;
	packet->is_segment = 1;
	packet->queue_ns = segmented->queue_ns;
	packet->left_ns = segmented->left_ns;
	enter_driver(packet);
	return 0;
}

/* The driver has it; the sk_buff may be gone. */
static __always_inline int on_driver_left(__u64 skb, int result)
{
	struct sent_packet *packet = find_sent(skb);
	struct segmented *segmented;
	struct flow *flow;
	__u64 now, since;

	/* From another CPU's driver comes an earlier packet of this address. */
	if (!packet || !packet->driver_ns || packet->has_left ||
	    packet->driver_cpu != (__u16)bpf_get_smp_processor_id())
		return 0;
	if (packet->depth) {
		packet->depth--;
		return 0;
	}
	if (result) { /* busy: it will be tried again */
		packet->driver_ns = 0;
		return 0;
	}
	now = bpf_ktime_get_ns();
	packet->has_left = 1;
	flow = find_flow(packet->sk);
	if (!flow)
		return 0;
	tell_ip(flow, packet);
	add_write(flow, L2_DURATION, now - packet->queue_ns);
	add_write(flow, L2_READY_SEND_DURATION, packet->driver_ns - packet->queue_ns);
	add_write(flow, L2_NETDEVICE_SEND_DURATION, now - packet->driver_ns);
	since = packet->left_ns;
	if (packet->is_segment) {
		segmented = segmented_at(flow, packet->place);
		if (segmented->queue_ns == packet->queue_ns)
			segmented->queue_ns = now; /* the next one's time begins where this one's ends */
		if (since && since < packet->queue_ns)
			since = packet->queue_ns;
	} else {
		tell_entered(flow, packet);
	}
	if (since) { /* it was kept: it stays in the layers above until now */
		add_write(flow, L3_DURATION, now - since);
		add_write(flow, L4_DURATION, now - since);
	} else if (packet->ip_ns) {
		/* It may be received and freed, and another packet have its address, before IP returns. */
		tell_in_ip(flow, packet, now);
	}
	return 0;
}

/* Packets lost for a reason; 0: the kernel has none. Without room for it they are only lost. */
static __always_inline void lose(struct flow *flow, __u64 sk, __u32 reason, __u32 packets)
{
	struct loss made = {.packets = packets, .reason = reason};
	struct loss_key key = {.sk = sk};
	struct loss *loss;

	for (__u32 i = 0; reason && i < MAX_REASONS; i++) {
		key.place = i;
		loss = bpf_map_lookup_elem(&losses, &key);
		if (!loss && !bpf_map_update_elem(&losses, &key, &made, BPF_NOEXIST))
			goto explained;
		if (!loss) /* another CPU was faster, or there is no room */
			loss = bpf_map_lookup_elem(&losses, &key);
		if (!loss)
			break;
		if (loss->reason == reason) {
			__sync_fetch_and_add(&loss->packets, packets);
			goto explained;
		}
	}
	add_write(flow, LOST_PACKET_COUNT, packets);
	return;
explained:
	__sync_fetch_and_add(&flow->explained, packets);
}

/*
 * Freed other than by being sent or read, `is_given` to a device or still in IP. There it has no
 * slot without the hooks of IP, only perhaps that of a packet that had its address before.
 */
static __always_inline int on_lost(__u64 skb, __u64 sk, __u32 reason, __u16 segments,
				   bool is_given)
{
	struct sent_packet *packet = find_sent(skb);
	struct flow *flow;

	if (packet && (packet->sk != sk || (packet->has_left && !is_given)))
		packet = 0;
	if (packet && packet->has_left)
		return 0; /* some drivers free so what they have sent */
	flow = find_flow(sk);
	if (!flow)
		return 0;
	lose(flow, sk, reason, segments ? segments : 1);
	if (packet) {
		if (packet->queue_ns && !packet->is_segment)
			tell_entered(flow, packet);
		if (packet->neighbour_ns && !packet->queue_ns) { /* nobody answered */
			__sync_fetch_and_add(&flow->write[PODWIRE_RESOLVE_MAC_COUNT], 1);
			__sync_fetch_and_add(&flow->write[PODWIRE_RESOLVE_MAC_DURATION],
					     bpf_ktime_get_ns() - packet->neighbour_ns);
		}
		if (packet->ip_ns && !packet->left_ns)
			packet->has_left = 1; /* what is known of it is told on the way back */
		else
			packet->skb = 0;
	}
	return 0;
}
