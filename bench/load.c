/* An open-model load: requests go out when they are due, whether or not earlier ones are answered.
 *
 *     load HOST PORT SECONDS STREAM...        STREAM is name:rate:connections:file
 *
 * Arrivals are Poisson, `rate` per second; latency counts from the moment a request was due, so a
 * slow server can't hide behind a waiting client (no coordinated omission). A rate of 0 is the
 * closed model: each connection asks again as soon as it is answered. Connections are open before
 * the clock starts, as those of a gateway are. A stream's file holds its requests as they go over
 * the wire, each after its length as a 32-bit integer of the machine; it is read once, in order.
 * Prints JSON: for each stream, by HTTP status (0: the connection broke), the count and latency
 * percentiles in ms, the requests nobody answered within GRACE_SECONDS after the end; and for the
 * whole the seconds until the last answer, how late requests went out and what share of a core it
 * took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SETTLE_SECONDS 0.5 /* for the server to accept all connections */
#define GRACE_SECONDS 6.0
#define MAX_STREAMS 16
#define MAX_STATUS 600
#define ANSWER_BYTES 8192

/* Log-linear buckets of microseconds: 128 per power of two, so within 1 % at any size. */
#define SUB_BITS 7
#define BUCKETS ((40 - SUB_BITS + 1) << SUB_BITS)

typedef struct {
    uint32_t *counts;
    uint64_t total;
    uint64_t max;
} histogram;

struct stream;

typedef struct connection {
    struct stream *stream;
    int fd; /* -1: not connected */
    double due; /* of the request in flight */
    const char *out; /* what is left to send */
    size_t out_left;
    char in[ANSWER_BYTES];
    size_t in_used;
    size_t body_left;
    int status; /* of the answer whose body is being read; 0: still in its head */
    int busy;
    int watches_writing;
    struct connection *next_free;
} connection;

typedef struct stream {
    const char *name;
    double rate;
    int size;
    const char *next, *end; /* in the file of requests */
    double next_due;
    connection *connections;
    connection *free;
    histogram by_status[MAX_STATUS];
    double *queue; /* due times that wait for a connection: a ring */
    size_t queue_head, queue_used, queue_size;
    uint64_t offered, answered;
} stream;

static struct sockaddr_in address;
static int poller;
static histogram lateness;
static stream streams[MAX_STREAMS];
static int stream_count;
static int exhausted;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *allocate(size_t count, size_t size) {
    void *got = calloc(count, size);
    if (!got) die("memory");
    return got;
}

static int bucket_of(uint64_t us) {
    if (us < (1u << SUB_BITS)) return (int)us;
    int shift = 63 - __builtin_clzll(us) - SUB_BITS;
    int index = ((shift + 1) << SUB_BITS) + (int)((us >> shift) - (1u << SUB_BITS));
    return index < BUCKETS ? index : BUCKETS - 1;
}

static double bucket_value(int index) { /* the upper end, in µs */
    if (index < (1 << SUB_BITS)) return index;
    int shift = (index >> SUB_BITS) - 1;
    uint64_t base = (uint64_t)((index & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS));
    return (double)(((base + 1) << shift) - 1);
}

static void note(histogram *h, double seconds) {
    uint64_t us = seconds > 0 ? (uint64_t)(seconds * 1e6) : 0;
    if (!h->counts) h->counts = allocate(BUCKETS, sizeof *h->counts);
    h->counts[bucket_of(us)]++;
    h->total++;
    if (us > h->max) h->max = us;
}

static double percentile(const histogram *h, double share) { /* in ms */
    uint64_t wanted = (uint64_t)ceil(share * (double)h->total), seen = 0;
    for (int i = 0; h->counts && i < BUCKETS; i++)
        if ((seen += h->counts[i]) >= wanted) {
            double value = bucket_value(i);
            return (value < (double)h->max ? value : (double)h->max) / 1000;
        }
    return 0;
}

static double gap(double rate) { return -log(1 - drand48()) / rate; }

static void watch(connection *c, int writing, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (operation == EPOLL_CTL_MOD && writing == c->watches_writing) return;
    c->watches_writing = writing;
    if (epoll_ctl(poller, operation, c->fd, &event) < 0) die("epoll_ctl");
}

static void release(connection *c) {
    c->busy = 0;
    c->next_free = c->stream->free;
    c->stream->free = c;
}

static void finish(connection *c, int status) {
    note(&c->stream->by_status[status], now() - c->due);
    c->stream->answered++;
    release(c);
}

static void drop(connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->busy) finish(c, 0);
}

static int flush_out(connection *c) { /* 0: the connection broke */
    while (c->out_left) {
        ssize_t n = send(c->fd, c->out, c->out_left, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN || errno == ENOTCONN) {
                watch(c, 1, EPOLL_CTL_MOD);
                return 1;
            }
            return 0;
        }
        c->out += n;
        c->out_left -= (size_t)n;
    }
    watch(c, 0, EPOLL_CTL_MOD);
    return 1;
}

/* wait: blocks until connected; else the connection is complete when it becomes writable. */
static void open_connection(connection *c, int wait) {
    int yes = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | (wait ? 0 : SOCK_NONBLOCK), 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        die("connect");
    if (wait && fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) die("fcntl");
    c->in_used = 0;
    watch(c, !wait, EPOLL_CTL_ADD);
}

/* Sends the stream's next request on a free connection. */
static void ask(stream *s, double due) {
    uint32_t length;
    if (s->next + sizeof length > s->end) {
        exhausted = 1;
        return;
    }
    connection *c = s->free;
    s->free = c->next_free;
    memcpy(&length, s->next, sizeof length);
    c->out = s->next + sizeof length;
    c->out_left = length;
    s->next += sizeof length + length;
    c->due = due;
    c->busy = 1;
    c->status = 0;
    if (c->fd < 0) open_connection(c, 0); /* goes out when it is writable */
    else if (!flush_out(c)) drop(c);
}

/* Reads the head of an answer: status and length of the body. 0: incomplete; -1: invalid. */
static int read_head(connection *c) {
    char *end = memmem(c->in, c->in_used, "\r\n\r\n", 4);
    if (!end) return c->in_used == ANSWER_BYTES ? -1 : 0;
    size_t head = (size_t)(end - c->in) + 4;
    if (head < 16 || memcmp(c->in, "HTTP/1.1 ", 9)) return -1;
    int status = atoi(c->in + 9);
    long length = status == 204 ? 0 : -1;
    for (char *line = c->in; line < end;) {
        line = memmem(line, (size_t)(end + 2 - line), "\r\n", 2) + 2;
        if (!strncasecmp(line, "content-length:", 15)) length = atol(line + 15);
    }
    if (status < 100 || status >= MAX_STATUS || length < 0) return -1;
    c->status = status;
    c->body_left = (size_t)length;
    memmove(c->in, c->in + head, c->in_used - head);
    c->in_used -= head;
    return 1;
}

static void readable(connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, c->in + c->in_used, ANSWER_BYTES - c->in_used, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            drop(c);
            return;
        }
        c->in_used += (size_t)n;
        if (!c->status) {
            int found = read_head(c);
            if (found < 0) {
                drop(c);
                return;
            }
            if (!found) continue;
        }
        size_t body = c->in_used < c->body_left ? c->in_used : c->body_left;
        c->body_left -= body;
        c->in_used = 0; /* one request at a time: nothing follows */
        if (!c->body_left) {
            int status = c->status;
            c->status = 0;
            if (c->busy) finish(c, status);
            return;
        }
    }
}

static void push(stream *s, double due) {
    if (s->queue_used == s->queue_size) {
        size_t size = s->queue_size ? s->queue_size * 2 : 1024;
        double *bigger = allocate(size, sizeof *bigger);
        for (size_t i = 0; i < s->queue_used; i++)
            bigger[i] = s->queue[(s->queue_head + i) % s->queue_size];
        free(s->queue);
        s->queue = bigger;
        s->queue_head = 0;
        s->queue_size = size;
    }
    s->queue[(s->queue_head + s->queue_used++) % s->queue_size] = due;
}

/* Sends all that is due, as far as there are connections. */
static void send_due(stream *s, double t, double end) {
    if (s->rate == 0) {
        while (s->free && t < end && !exhausted) {
            s->offered++;
            ask(s, now());
        }
        return;
    }
    while (s->next_due <= t && s->next_due < end) {
        s->offered++;
        note(&lateness, t - s->next_due);
        push(s, s->next_due);
        s->next_due += gap(s->rate);
    }
    while (s->free && s->queue_used && !exhausted) {
        double due = s->queue[s->queue_head];
        s->queue_head = (s->queue_head + 1) % s->queue_size;
        s->queue_used--;
        ask(s, due);
    }
}

static void parse(stream *s, char *argument) {
    char *rest = argument;
    s->name = strsep(&rest, ":");
    char *rate = strsep(&rest, ":"), *size = strsep(&rest, ":");
    if (!rest || (s->size = atoi(size)) < 1 || (s->rate = atof(rate)) < 0) {
        fprintf(stderr, "load: a stream is name:rate:connections:file\n");
        exit(2);
    }
    int fd = open(rest, O_RDONLY);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) < 0) die(rest);
    s->next = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (s->next == MAP_FAILED) die(rest);
    s->end = s->next + info.st_size;
    s->connections = allocate((size_t)s->size, sizeof *s->connections);
    for (int i = s->size; i--;) {
        s->connections[i].stream = s;
        open_connection(&s->connections[i], 1);
        release(&s->connections[i]);
    }
}

static void print_percentiles(const histogram *h) {
    printf("\"count\": %llu, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, "
           "\"max\": %.3f",
           (unsigned long long)h->total, percentile(h, .5), percentile(h, .9), percentile(h, .99),
           percentile(h, .999), (double)h->max / 1000);
}

int main(int count, char **arguments) {
    if (count < 5 || count - 4 > MAX_STREAMS) {
        fprintf(stderr, "usage: load HOST PORT SECONDS name:rate:connections:file...\n");
        return 2;
    }
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    if (inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1) {
        fprintf(stderr, "load: %s is not an IPv4 address\n", arguments[1]);
        return 2;
    }
    double seconds = atof(arguments[3]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    srand48((long)getpid());
    poller = epoll_create1(0);
    stream_count = count - 4;
    for (int i = 0; i < stream_count; i++) parse(&streams[i], arguments[4 + i]);
    double start = now() + SETTLE_SECONDS, end = start + seconds;
    while (now() < start) usleep(1000);
    for (int i = 0; i < stream_count; i++)
        streams[i].next_due = start + (streams[i].rate ? gap(streams[i].rate) : 0);
    for (;;) {
        double t = now(), wake = end;
        int in_flight = 0;
        for (int i = 0; i < stream_count; i++) {
            stream *s = &streams[i];
            send_due(s, t, end);
            in_flight |= s->offered > s->answered;
            if (s->rate > 0 && s->next_due < wake) wake = s->next_due;
        }
        if (exhausted || t > end + GRACE_SECONDS || (t >= end && !in_flight)) break;
        if (t >= end) wake = t + .01;
        double pause = wake - now();
        if (pause < 0) pause = 0;
        struct timespec timeout = {(time_t)pause, (long)((pause - floor(pause)) * 1e9)};
        struct epoll_event events[512];
        int n = epoll_pwait2(poller, events, 512, &timeout, NULL);
        if (n < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            if (c->fd < 0) continue;
            if (events[i].events & EPOLLOUT && !flush_out(c)) {
                drop(c);
                continue;
            }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        }
    }
    if (exhausted) {
        fprintf(stderr, "load: a stream's requests ran out before the time did\n");
        return 3;
    }
    double took = now() - start;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double busy = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"seconds\": %.3f, \"cores\": %.3f, \"sent_late_ms\": {", took, busy / took);
    print_percentiles(&lateness);
    printf("}, \"streams\": {");
    for (int i = 0; i < stream_count; i++) {
        stream *s = &streams[i];
        printf("%s\"%s\": {\"offered\": %llu, \"answered\": %llu, \"unanswered\": %llu, "
               "\"by_status\": {",
               i ? ", " : "", s->name, (unsigned long long)s->offered,
               (unsigned long long)s->answered, (unsigned long long)(s->offered - s->answered));
        const char *comma = "";
        for (int status = 0; status < MAX_STATUS; status++) {
            if (!s->by_status[status].total) continue;
            printf("%s\"%d\": {", comma, status);
            print_percentiles(&s->by_status[status]);
            printf("}");
            comma = ", ";
        }
        printf("}}");
    }
    printf("}}\n");
    return 0;
}
