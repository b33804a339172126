/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * CPU nanoseconds per system call, for the benchmark:
 * calls EXCHANGES OTHERS [WHAT THE BYTES BEGIN WITH]
 * Prints a TCP write or read over loopback (requests and responses, both ends here, so that
 * everything the packets pass runs in this process too); unless OTHERS is 0, a write to /dev/null
 * and a getppid, so many of each.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

int main(int count, char **arguments)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	int server, null = open("/dev/null", O_WRONLY);
	char buffer[64] = {0};
	double start;
	long times, others;

	if (count != 3 && count != 4)
		return 2;
	if (count == 4)
		strncpy(buffer, arguments[3], sizeof(buffer) - 1);
	times = atol(arguments[1]);
	others = atol(arguments[2]);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (void *)&address, sizeof(address)) || listen(listener, 4) ||
	    getsockname(listener, (void *)&address, &length) ||
	    connect(client, (void *)&address, sizeof(address)))
		return 3;
	server = accept(listener, NULL, NULL);
	start = cpu_ns();
	for (long i = 0; i < times; i++)
		if (write(client, buffer, 64) != 64 || read(server, buffer, 64) != 64 ||
		    write(server, buffer, 64) != 64 || read(client, buffer, 64) != 64)
			return 4;
	printf("%.1f ", (cpu_ns() - start) / times / 4);
	if (!others)
		return 0;
	start = cpu_ns();
	for (long i = 0; i < others; i++)
		if (write(null, buffer, 64) != 64)
			return 4;
	printf("%.1f ", (cpu_ns() - start) / others);
	start = cpu_ns();
	for (long i = 0; i < others; i++)
		syscall(SYS_getppid);
	printf("%.1f\n", (cpu_ns() - start) / others);
	return 0;
}
