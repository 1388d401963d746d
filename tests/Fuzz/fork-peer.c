/*
 * fork-peer SIZE
 *
 * A VMM that forks when it is told to, for the fuzz target of the supervisor. Over descriptor 3 it sends its userfaultfd, which asks for EVENT_FORK, and
 * the address of its memory. For each byte that comes then it does something and answers with the same byte: 'f', it forks, which lasts until the
 * handler has read the event; 'e', it ends the child. When the other end is gone it ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHANNEL 3
#define GIGANTIC (1ull << 30)

static int send_memory(int uffd, uint64_t address)
{
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    memcpy(CMSG_DATA(&control.header), &uffd, sizeof uffd);
    struct iovec vector = { &address, sizeof address };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    return sendmsg(CHANNEL, &message, MSG_NOSIGNAL) == (ssize_t)sizeof address;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    size_t size = strtoull(argv[1], NULL, 10);
    char *memory = mmap(NULL, size + GIGANTIC, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return 1;
    uint64_t start = ((uint64_t)memory + GIGANTIC - 1) & ~(GIGANTIC - 1);
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_FORK };
    struct uffdio_register reg = { .range = { start, size }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg) || !send_memory(uffd, start)) return 1;
    /* With the other end its last descriptor is closed, and no fork waits for an event any more. */
    close(uffd);
    pid_t self = getpid(), child = 0;
    char what;
    while (read(CHANNEL, &what, 1) == 1) {
        if (what == 'f' && child <= 0) {
            child = fork();
            if (!child) {
                close(CHANNEL);
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                while (getppid() == self) pause();
                _exit(0);
            }
        } else if (what == 'e' && child > 0) {
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            child = 0;
        }

        if (send(CHANNEL, &what, 1, MSG_NOSIGNAL) != 1) break;
    }

    return 0;
}
