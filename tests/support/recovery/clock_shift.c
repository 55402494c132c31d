/* Preloaded, it shifts the wall clock of a process by the nanoseconds in the file that CLOCK_SHIFT names, also while
   the process runs. The steady clocks stay as they are. A wait until an instant of the wall clock ends as it would. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

#define SECOND_NS 1000000000
/* An instant after 2001 is of the wall clock; the steady clocks count from the boot. */
#define WALL_S SECOND_NS

static const volatile int64_t *shift_ns;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_cnd_timedwait)(cnd_t *, mtx_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_timedwait) real_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real_cnd_timedwait = dlsym(RTLD_NEXT, "cnd_timedwait");
    void *content = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *shift_ns, PROT_READ, MAP_SHARED, file, 0);
    if (content != MAP_FAILED) shift_ns = content;
}

static void move(struct timespec *at, int64_t by_ns) {
    int64_t ns = at->tv_nsec + by_ns % SECOND_NS;
    at->tv_sec += by_ns / SECOND_NS + (ns >= SECOND_NS) - (ns < 0);
    at->tv_nsec = ns + (ns < 0) * SECOND_NS - (ns >= SECOND_NS) * SECOND_NS;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_gettime) real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real_gettime(clock, now);
    if (!failed && shift_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) move(now, *shift_ns);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec at;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now) *now = at.tv_sec;
    return at.tv_sec;
}

static struct timespec unmoved(const struct timespec *until) {
    struct timespec at = *until;
    if (shift_ns && at.tv_sec > WALL_S) move(&at, -*shift_ns);
    return at;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    struct timespec at = unmoved(until);
    return real_timedwait(cond, mutex, &at);
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
    struct timespec at = unmoved(until);
    return real_cnd_timedwait(cond, mutex, &at);
}
