/* A wall clock that is as wrong as the eight bytes in a file say: preloaded into a node, which knows nothing of it.
   The file holds nanoseconds to add to the time of day, and may be changed while the node runs.
   Build: cc -shared -fPIC -O1 -o clock_shim.so clock_shim.c */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t right = 0;
static volatile int64_t *skew_ns = &right;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_SKEW_FILE");
    int handle = path ? open(path, O_RDONLY) : -1;
    if (handle < 0) return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, handle, 0);
    if (page != MAP_FAILED) skew_ns = page;
    close(handle);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, which, now);
    if (failed || (which != CLOCK_REALTIME && which != CLOCK_REALTIME_COARSE)) return failed;
    int64_t sum = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + *skew_ns;
    now->tv_sec = sum / 1000000000;
    now->tv_nsec = sum % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (into) *into = exact.tv_sec;
    return exact.tv_sec;
}
