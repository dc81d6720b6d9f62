/* The yardstick: the same checks as a paced epoll loop in C.
 *
 *   paced tcp|http|ping PORT RATE SECONDS
 *
 * RATE services, each checked once a second, on a grid of 10 ms: one wake-up starts a whole batch. Service i has an
 * address of its own, 127.1.(i/250).(i%250+1). tcp: connect and close. http: a new connection, request, read to the end
 * of the headers, compare the status. ping: one PING on a kept connection. Each check has a deadline of 5 s in a ring of
 * slots. Prints checks, failures, CPU microseconds per check, and lateness (start after grid point) p50 and p99 in ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TCP, HTTP, PING };
enum { IDLE, CONNECTING, TALKING };
struct service { int fd, state, slot; struct service *next, **prev; };

static struct service *services, *slots[512];
static int kind, epoll, port, rate;
static long checks, failures;
static double *late;
static const char REQUEST[] = "GET /health HTTP/1.1\r\nHost: h\r\nUser-Agent: selfheal\r\nAccept: */*\r\nConnection: close\r\n\r\n";
static const char PING_WORD[] = "*1\r\n$4\r\nPING\r\n";

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static double cpu(void) {
    struct rusage u; getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}
static void disarm(struct service *s) { *s->prev = s->next; if (s->next) s->next->prev = s->prev; }
static void arm(struct service *s, long tick) {
    struct service **head = &slots[(tick + 500) % 512];
    s->next = *head; s->prev = head; if (*head) (*head)->prev = &s->next; *head = s;
}
static void end(struct service *s, int well) {
    disarm(s); s->state = IDLE; checks++; failures += !well;
    if (kind != PING || !well) { close(s->fd); s->fd = -1; }
}
static void say(struct service *s) {
    s->state = TALKING;
    const char *words = kind == HTTP ? REQUEST : PING_WORD;
    if (send(s->fd, words, strlen(words), MSG_NOSIGNAL) < 0) end(s, 0);
}
static void watch(struct service *s) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &e);
}
static void start(struct service *s, long tick) {
    arm(s, tick);
    if (s->fd >= 0) { say(s); return; }
    long i = s - services;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port),
                            .sin_addr.s_addr = htonl(0x7f010000u + (unsigned)((i / 250) << 8) + (unsigned)(i % 250 + 1))};
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    s->state = CONNECTING;
    int r = connect(s->fd, (struct sockaddr *)&a, sizeof a);
    if (r < 0 && errno == EINPROGRESS) r = connect(s->fd, (struct sockaddr *)&a, sizeof a);
    if (r == 0 && kind == TCP) { end(s, 1); return; }
    if (r < 0 && errno != EALREADY) { end(s, 0); return; }
    if (r == 0) say(s);
    if (s->fd >= 0) watch(s);
}
static void handle(struct service *s, unsigned events) {
    char data[4096];
    if (s->state == CONNECTING) {
        int error = 0; socklen_t n = sizeof error;
        getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error) { end(s, 0); return; }
        if (!(events & EPOLLOUT)) return;
        if (kind == TCP) { end(s, 1); return; }
        say(s);
    } else if (s->state == TALKING && events & (EPOLLIN | EPOLLRDHUP)) {
        ssize_t n = recv(s->fd, data, sizeof data, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) { end(s, 0); return; }
        if (kind == PING) end(s, n == 7 && !memcmp(data, "+PONG\r\n", 7));
        else if (memmem(data, n, "\r\n\r\n", 4)) end(s, !memcmp(data + 9, "200", 3));
    }
}
static int order(const void *a, const void *b) { double d = *(double *)a - *(double *)b; return d < 0 ? -1 : d > 0; }

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    kind = !strcmp(argv[1], "tcp") ? TCP : !strcmp(argv[1], "http") ? HTTP : PING;
    port = atoi(argv[2]); rate = atoi(argv[3]); double seconds = atof(argv[4]);
    services = calloc(rate, sizeof *services);
    for (int i = 0; i < rate; i++) services[i].fd = -1;
    late = malloc(sizeof(double) * (size_t)(rate * (seconds + 3)));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    double epoch = now() + 0.05, cpu_from = 0, measured_from = epoch + 1;  /* the first second warms up */
    long tick = 0, started = 0, checks_from = 0, failures_from = 0, warm = 0;
    struct epoll_event events[512];
    for (;;) {
        double due = epoch + tick * 0.010, wait = due - now();
        if (wait > 0) {
            struct timespec t = {(long)wait, (long)((wait - (long)wait) * 1e9)};
            int n = epoll_pwait2(epoll, events, 512, &t, NULL);
            for (int i = 0; i < n; i++) handle(events[i].data.ptr, events[i].events);
            continue;
        }
        if (!warm && due >= measured_from) { warm = 1; cpu_from = cpu(); checks_from = checks; failures_from = failures; started = 0; }
        if (due >= measured_from + seconds) break;
        for (struct service *s = slots[tick % 512]; s; s = s->next) failures++;
        long slot = tick % 100, low = rate * slot / 100, high = rate * (slot + 1) / 100;
        for (long i = low; i < high; i++) if (services[i].state == IDLE) { late[started++] = now() - due; start(&services[i], tick); }
        tick++;
    }
    double used = cpu() - cpu_from; long done = checks - checks_from;
    qsort(late, started, sizeof *late, order);
    printf("%ld %ld %.3f %.3f %.3f\n", done, failures - failures_from, used / done * 1e6, late[started / 2] * 1e3, late[started * 99 / 100] * 1e3);
    return 0;
}
