/* slow-file BACKING MOUNTPOINT [--read-us N] [--threads N] [--readahead BYTES]
   A file system of one file, mounted over the file MOUNTPOINT, whose content is that of BACKING and whose every read takes N us (2000): a
   disk that is far away. Reads do not wait for each other, as long as there are threads (64), and bring in one page each: there is no
   readahead, unless --readahead says how many bytes (at most 128 KiB). What was read stays in the page cache until the file is opened
   again. Speaks the protocol of /dev/fuse itself; needs root. Prints "ready" when it is mounted; unmounts at SIGTERM, and where its
   standard input ends. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_READ (128 << 10)

static int device, backing;
static long read_us = 2000;
static uint32_t ahead;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void reply(uint64_t unique, int error, const void *data, size_t length)
{
    struct fuse_out_header header = { .len = (uint32_t)(sizeof header + length), .error = -error, .unique = unique };
    struct iovec parts[] = { { &header, sizeof header }, { (void *)data, length } };
    /* ENOENT: the one that asked was interrupted, and is gone. */
    if (writev(device, parts, length ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV) perror("reply");
}

static void initialize(uint64_t unique, const struct fuse_init_in *in)
{
    struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION, .minor = in->minor < FUSE_KERNEL_MINOR_VERSION ? in->minor : FUSE_KERNEL_MINOR_VERSION };
    out.max_readahead = ahead < in->max_readahead ? ahead : in->max_readahead;
    out.flags = in->flags & (FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS);
    out.max_background = 64;
    out.congestion_threshold = 48;
    out.max_write = 4096;
    out.time_gran = 1;
    reply(unique, 0, &out, sizeof out);
}

static void get_attributes(uint64_t unique)
{
    struct stat status;
    struct fuse_attr_out out = { .attr_valid = 3600 };
    if (fstat(backing, &status)) {
        reply(unique, errno, NULL, 0);
        return;
    }

    out.attr.ino = FUSE_ROOT_ID;
    out.attr.size = (uint64_t)status.st_size;
    out.attr.blocks = (uint64_t)status.st_blocks;
    out.attr.mtime = (uint64_t)status.st_mtim.tv_sec;
    out.attr.mtimensec = (uint32_t)status.st_mtim.tv_nsec;
    out.attr.mode = S_IFREG | 0444;
    out.attr.nlink = 1;
    out.attr.blksize = 4096;
    reply(unique, 0, &out, sizeof out);
}

static void read_slowly(uint64_t unique, const struct fuse_read_in *in, char *buffer)
{
    struct timespec pause = { read_us / 1000000, read_us % 1000000 * 1000 };
    nanosleep(&pause, NULL);
    ssize_t length = pread(backing, buffer, in->size < MAX_READ ? in->size : MAX_READ, (off_t)in->offset);
    reply(unique, length < 0 ? errno : 0, buffer, length < 0 ? 0 : (size_t)length);
}

/* Each thread takes the next request; the kernel gives it to one of them. */
static void *answer(void *unused)
{
    char *request = malloc(MAX_READ), *data = malloc(MAX_READ);
    struct fuse_open_out opened = { 0 };
    (void)unused;
    if (!request || !data) die("malloc");
    for (;;) {
        ssize_t length = read(device, request, MAX_READ);
        if (length < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
        /* ENODEV: it was unmounted. */
        if (length < (ssize_t)sizeof(struct fuse_in_header)) exit(length < 0 && errno != ENODEV);
        const struct fuse_in_header *header = (const void *)request;
        const void *body = header + 1;
        switch (header->opcode) {
        case FUSE_INIT: initialize(header->unique, body); break;
        case FUSE_GETATTR: get_attributes(header->unique); break;
        case FUSE_OPEN: reply(header->unique, 0, &opened, sizeof opened); break;
        case FUSE_READ: read_slowly(header->unique, body, data); break;
        case FUSE_RELEASE: case FUSE_FLUSH: case FUSE_ACCESS: reply(header->unique, 0, NULL, 0); break;
        case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT: break;
        default: reply(header->unique, ENOSYS, NULL, 0); break;
        }
    }
}

int main(int argc, char **argv)
{
    long threads = 64;
    char options[128];
    sigset_t ends;
    pthread_t thread;
    if (argc < 3) return 2;
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--read-us") && i + 1 < argc) read_us = strtol(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc) threads = strtol(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--readahead") && i + 1 < argc) ahead = (uint32_t)strtoul(argv[++i], NULL, 0);
        else return 2;
    }

    backing = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (backing < 0) die(argv[1]);
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) die("/dev/fuse");
    snprintf(options, sizeof options, "fd=%d,rootmode=100444,user_id=%u,group_id=%u,allow_other", device, getuid(), getgid());
    if (mount("slow-file", argv[2], "fuse", MS_NOSUID | MS_NODEV | MS_RDONLY, options)) die("mount");
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    int signals = signalfd(-1, &ends, SFD_CLOEXEC);
    for (long i = 0; i < threads; i++) if (pthread_create(&thread, NULL, answer, NULL)) die("pthread_create");
    puts("ready");
    fflush(stdout);
    struct pollfd ended[] = { { signals, POLLIN, 0 }, { STDIN_FILENO, POLLIN, 0 } };
    for (;;) {
        char ignored[256];
        if (poll(ended, 2, -1) < 0 && errno != EINTR) break;
        if (ended[0].revents) break;
        if (ended[1].revents && read(STDIN_FILENO, ignored, sizeof ignored) <= 0) break;
    }

    /* What still has it open keeps it until it lets go; what it reads then fails. */
    if (umount2(argv[2], MNT_DETACH)) die("umount");
    return 0;
}
