/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The monitoring scope, as far as it can be told from ports and processes. What is left out makes no
 * record; its events are counted. It may change at any time: the state of a socket remembers by which
 * scope it was looked at.
 */
#ifndef PODWIRE_SCOPE_H
#define PODWIRE_SCOPE_H

static __always_inline __u32 current_scope(void)
{
	__u32 zero = 0, *number = bpf_map_lookup_elem(&scope_number, &zero);

	return number ? *number : 0;
}

static __always_inline bool is_left_out(__u32 role, __u32 local_port, __u32 remote_port, __u32 pid)
{
	bool is_server = role == PODWIRE_ROLE_SERVER;
	struct podwire_scope *scope;
	__u32 zero = 0, port;
	__u64 bits;

	if (!current_scope())
		return false;
	if (pid && bpf_map_lookup_elem(&refused, &pid))
		return true;
	scope = bpf_map_lookup_elem(&scopes, &zero);
	if (!scope)
		return false;
	if (role == PODWIRE_ROLE_UNKNOWN) /* ephemeral ports are high */
		is_server = local_port < remote_port;
	port = (is_server ? local_port : remote_port) & 0xffff;
	bits = is_server ? scope->of_servers[port >> 6] : scope->of_clients[port >> 6];
	return bits >> (port & 63) & 1;
}

#endif
