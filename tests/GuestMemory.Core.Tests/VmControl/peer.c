/*
 * A peer of a VM memory service that shares nothing with it but the socket: USER SOCKET PACKET [FILE]. Becomes the user, connects, sends the
 * packet, with the file as its descriptor, and prints the answer. Ends with the error number of what failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int send_packet(int socket, char *packet, int file)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    struct iovec part = { packet, strlen(packet) };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

    if (file >= 0) {
        memcpy(CMSG_DATA(&control.header), &file, sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }

    return sendmsg(socket, &message, MSG_NOSIGNAL) < 0;
}

int main(int count, char **arguments)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char answer[4096];
    ssize_t length;
    int user, file, peer;

    if (count < 4) return EINVAL;
    user = atoi(arguments[1]);
    file = count > 4 ? open(arguments[4], O_RDWR | O_CLOEXEC) : -1;
    if (setresgid(user, user, user) || setresuid(user, user, user)) return errno;
    peer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, arguments[2], sizeof(address.sun_path) - 1);
    if (connect(peer, (struct sockaddr *)&address, sizeof(address)) || send_packet(peer, arguments[3], file)) return errno;
    length = recv(peer, answer, sizeof(answer), 0);
    if (length < 0) return errno;
    fwrite(answer, 1, length, stdout);
    return 0;
}
