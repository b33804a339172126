/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The tracepoints on a packet's way, on every tier. */

/* A member of what the layer that has a packet keeps in it. Here the verifier knows the packet, and
 * it is read without a helper, which would take tens of nanoseconds. */
#define READ_CONTROL(skb, type, member)                                                            \
	(*(typeof(((struct type *)0)->member) *)((skb)->cb +                                       \
						 bpf_core_field_offset(struct type, member)))

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(netif_receive_skb, struct sk_buff *skb)
{
	return on_device((__u64)skb);
}

/* tcp_rcv_established() */
SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_probe, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return 0;
	return on_queued((__u64)sk, (__u64)skb, READ_CONTROL(skb, tcp_skb_cb, seq),
			 READ_CONTROL(skb, tcp_skb_cb, end_seq), tp->rcv_nxt, tp->copied_seq);
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(skb_copy_datagram_iovec, struct sk_buff *skb, int length)
{
	__u32 end_seq = READ_CONTROL(skb, tcp_skb_cb, end_seq);
	struct sock *sk = skb->sk;

	if (!sk)
		return 0;
	if (end_seq - READ_CONTROL(skb, tcp_skb_cb, seq) != length) /* not all of it, or a FIN with it */
		end_seq = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq) + length;
	return on_copied((__u64)sk, end_seq);
}

enum {
	NO_MAC_HEADER = 0xffff, /* __dev_queue_xmit() sets one */
};

/*
 * The sock whose packet goes out, if one of this host's sent it. What is passed on, as a bridge
 * does, may still have its sender's, but came in over a device.
 */
static __always_inline struct sock *sender_of(struct sk_buff *skb)
{
	return skb->skb_iif ? 0 : skb->sk;
}

/*
 * Whether a packet may be cut up below. Its size on the wire is counted before, with headers for all
 * of its segments (qdisc_pkt_len_init()).
 */
static __always_inline bool is_large(struct sk_buff *skb)
{
	return READ_CONTROL(skb, qdisc_skb_cb, pkt_len) != skb->len;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	struct sock *sk = sender_of(skb);
	__u32 size = 0, seq = 0;

	if (!sk)
		return 0;
	if (is_large(skb)) {
		seq = sequence_of(skb);
		size = BPF_CORE_READ(shared_info(skb), gso_size) *
		       BPF_CORE_READ(shared_info(skb), gso_segs);
	}
	return on_device_queue((__u64)skb, (__u64)sk, seq, size);
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit, struct sk_buff *skb)
{
	return on_driver(skb, (__u64)sender_of(skb));
}

SEC("tp_btf/net_dev_xmit")
int BPF_PROG(net_dev_xmit, struct sk_buff *skb, int result)
{
	return on_driver_left((__u64)skb, result);
}

/*
 * Freed for another reason than its end. The sock of a packet says whose it is, not which way it
 * went: one that this end sent has this end's port as its source.
 */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb, struct sk_buff *skb)
{
	struct sock *sk = skb->sk;
	struct tcphdr *header;
	__u32 reason = 0;

	if (!sk || !find_flow((__u64)sk))
		return 0;
	header = tcp_header_of(skb);
	if (BPF_CORE_READ(header, source) != BPF_CORE_READ((struct inet_sock *)sk, inet_sport))
		return 0;
	if (bpf_core_type_exists(enum skb_drop_reason))
		reason = ctx[2]; /* else there is no such argument, and this is dead code */
	return on_lost((__u64)skb, (__u64)sk, reason, BPF_CORE_READ(shared_info(skb), gso_segs),
		       skb->mac_header != NO_MAC_HEADER);
}
