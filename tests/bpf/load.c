/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Short connections to itself over loopback: load CONNECTIONS BYTES
 * Prints the port; one write and one read of BYTES per connection.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	struct linger hard = {1, 0};
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client, server;
	char buffer[65536];
	long connections, bytes;

	if (count != 3)
		return 2;
	connections = atol(arguments[1]);
	bytes = atol(arguments[2]);
	memset(buffer, 'x', sizeof(buffer));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bind(listener, (void *)&address, sizeof(address));
	listen(listener, 64);
	getsockname(listener, (void *)&address, &length);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	for (long i = 0; i < connections; i++) {
		client = socket(AF_INET, SOCK_STREAM, 0);
		/* No TIME_WAIT: the ports must last. */
		setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
		if (connect(client, (void *)&address, sizeof(address)))
			return 3;
		server = accept(listener, NULL, NULL);
		if (server < 0 || write(client, buffer, bytes) != bytes)
			return 4;
		if (recv(server, buffer, bytes, MSG_WAITALL) != bytes)
			return 5;
		close(client);
		close(server);
	}
	return 0;
}
