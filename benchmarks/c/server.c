/* What is checked: accepts on all of 127.0.0.0/8, answers PING and GET, closes after GET.
 *
 *   server         takes a free port, prints it, and ends with who started it
 *   server PORT    takes that one, and stays: a program for somebody to keep alive
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 2) prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct rlimit limit; getrlimit(RLIMIT_NOFILE, &limit); limit.rlim_cur = limit.rlim_max; setrlimit(RLIMIT_NOFILE, &limit);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    socklen_t n = sizeof a; int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&a, n) < 0) return 1;
    listen(listener, 4096); getsockname(listener, (struct sockaddr *)&a, &n);
    printf("%d\n", ntohs(a.sin_port)); fflush(stdout);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, events[512];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    char data[4096];
    for (;;) {
        int ready = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int client;
                while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    e.data.fd = client; epoll_ctl(epoll, EPOLL_CTL_ADD, client, &e);
                }
                continue;
            }
            ssize_t got = recv(fd, data, sizeof data, 0);
            if (got > 0 && data[0] == '*') { send(fd, "+PONG\r\n", 7, MSG_NOSIGNAL); continue; }
            if (got > 0) {
                static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nOK";
                send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
            }
            close(fd);
        }
    }
}
