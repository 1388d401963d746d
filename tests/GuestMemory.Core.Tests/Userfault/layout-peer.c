/*
 * layout-peer SOCKET IMAGE fork|remap|unmap
 *
 * A VMM that changes the layout of its memory after the hand-over, and asked for the events of that (EVENT_FORK, EVENT_REMAP,
 * EVENT_UNMAP). Prints a line for what its pages are then: "right", "zeros", "other" or "SIGBUS". Between the steps it waits for a line
 * on standard input.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul

static sigjmp_buf unreadable;
static char *image;
static size_t size;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void on_sigbus(int signal)
{
    (void)signal;
    siglongjmp(unreadable, 1);
}

/* What pages first to last - 1 of the image are at an address. */
static const char *look(const char *at, size_t first, size_t last)
{
    static const char zeros[PAGE];
    const char *result = "right";
    if (sigsetjmp(unreadable, 1)) return "SIGBUS";
    for (size_t i = first; i < last; i++) {
        const char *page = at + (i - first) * PAGE;
        if (!memcmp(page, image + i * PAGE, PAGE)) continue;
        result = memcmp(page, zeros, PAGE) ? "other" : "zeros";
    }

    return result;
}

static void hand_over(const char *path, int uffd, const void *memory)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (void *)&address, sizeof address)) die(path);
    char json[256];
    int length = snprintf(json, sizeof json, "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]", (unsigned long long)memory, size);
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    memcpy(CMSG_DATA(&control.header), &uffd, sizeof uffd);
    struct iovec vector = { json, (size_t)length };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    if (sendmsg(s, &message, MSG_NOSIGNAL) != length) die("sendmsg");
}

static void say(const char *what)
{
    char line[16];
    printf("%s\n", what);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(0);
}

static void run_fork(char *memory, size_t pages)
{
    pid_t child = fork();
    if (child < 0) die("fork");
    if (!child) {
        /* What had come before, then what had not. */
        const char *before = look(memory, 0, 8), *after = look(memory + 8 * PAGE, 8, 16);
        printf("child: %s, %s\n", before, after);
        fflush(stdout);
        _exit(0);
    }

    if (waitpid(child, NULL, 0) != child) die("waitpid");
    say(look(memory, 0, pages));
}

static void run_remap(char *memory, size_t pages)
{
    char *place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) die("mmap");
    /* The second half, so that the region becomes two. */
    size_t half = pages / 2;
    if (mremap(memory + half * PAGE, half * PAGE, half * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) die("mremap");
    say(look(place, half, half + 8));
    say(look(place + 8 * PAGE, half + 8, half + 16));
    say(look(memory, 0, half));
    say(look(place, half, pages));
}

static void run_unmap(int uffd, char *memory, size_t pages)
{
    size_t half = pages / 2;
    if (munmap(memory + half * PAGE, half * PAGE)) die("munmap");
    say("unmapped");
    /* Fresh memory at the same place. */
    if (mmap(memory + half * PAGE, half * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) die("mmap");
    struct uffdio_register reg = { .range = { (uint64_t)(memory + half * PAGE), half * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(uffd, UFFDIO_REGISTER, &reg)) die("UFFDIO_REGISTER");
    say(look(memory + half * PAGE, half, pages));
    say(look(memory, 0, half));
}

int main(int argc, char **argv)
{
    struct stat status;
    if (argc != 4) return 2;
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status)) die(argv[2]);
    size = (size_t)status.st_size;
    image = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (image == MAP_FAILED || memory == MAP_FAILED) die("mmap");
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) die("userfaultfd");
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP };
    if (ioctl(uffd, UFFDIO_API, &api)) die("UFFDIO_API");
    struct uffdio_register reg = { .range = { (uint64_t)memory, size }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(uffd, UFFDIO_REGISTER, &reg)) die("UFFDIO_REGISTER");
    signal(SIGBUS, on_sigbus);
    hand_over(argv[1], uffd, memory);
    say(look(memory, 0, 8));
    if (!strcmp(argv[3], "fork")) run_fork(memory, size / PAGE);
    else if (!strcmp(argv[3], "remap")) run_remap(memory, size / PAGE);
    else if (!strcmp(argv[3], "unmap")) run_unmap(uffd, memory, size / PAGE);
    else return 2;
    return 0;
}
