/*
 * A stand-in for libnvidia-ml.so.1, driven by a text file.
 *
 * The tests compile this file, put its folder in LD_LIBRARY_PATH and let the real pynvml binding load it. Every call
 * reads the state file again when it has changed, so a test can change the GPUs under a running process.
 *
 * Environment:
 *   NVML_STANDIN_STATE   the state file. Missing or unreadable: the driver is not loaded.
 *   NVML_STANDIN_CALLS   optional: each call appends a line, "function", "function gpu" or "function gpu.mig".
 *
 * State file: lines "key=value"; blank lines and lines starting with '#' are skipped; the last line for a key wins.
 *
 *   init=CODE                        what nvmlInit answers (0)
 *   count=N                          number of GPUs, 0 to 64 (1)
 *   driver=, nvml=, cuda=            versions; cuda is an int such as 12040
 *   hang=FUNCTION[,FUNCTION...]      those calls block as long as the line stands; "*" is every function
 *   error.FUNCTION=CODE              those calls answer CODE; "*" is every function
 *   delay_ms.FUNCTION=MS             those calls take MS milliseconds longer
 *   gpuN.hang=, gpuN.error.FUNCTION=, gpuN.delay_ms.FUNCTION=    the same for one GPU
 *   gpuN.lost=1                      every call about that GPU answers NVML_ERROR_GPU_IS_LOST
 *   gpuN.FIELD=VALUE                 a value of one GPU
 *   gpu.FIELD=VALUE                  the same for every GPU without a line of its own
 *
 * FIELD: name uuid pci_bus_id minor utilization memory_utilization memory_total memory_used memory_reserved temperature
 * power_mw power_limit_mw sm_clock mem_clock pstate throttle energy_mj ecc_corrected ecc_uncorrected
 * ecc_corrected_aggregate ecc_uncorrected_aggregate pcie_gen pcie_width pcie_gen_max pcie_width_max fan encoder decoder
 * mig_mode persistence bus_type architecture memory_bus_width processes mig.count mig.max
 * mig.K.{name,uuid,memory_total,memory_used,memory_reserved,processes,absent}
 *
 * The value "unsupported" makes the call answer NVML_ERROR_NOT_SUPPORTED; a value that cannot be read as what it should
 * be makes it answer NVML_ERROR_UNKNOWN. Functions are named by their C symbol.
 *
 * -DWITHOUT_<symbol> leaves a function out, as in a driver that is too old to have it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* With functions left out some helpers have no user. */
#pragma GCC diagnostic ignored "-Wunused-function"

#define EXPORT __attribute__((visibility("default")))

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

enum { MAX_GPUS = 64, MAX_MIGS = 64, NO_GPU = -1, NO_MIG = -1, KEY_SIZE = 128, PAUSE_NS = 5000000 };

typedef int nvmlReturn_t;
typedef struct opaque *nvmlDevice_t;

_Static_assert(sizeof(nvmlDevice_t) == 8, "handles are encoded in 64 bits");

/* ------------------------------------------------------------------------------------------------------- state file */

struct pair {
    const char *key;
    const char *value;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned refcount;
static uint32_t generation;

static char *text;           /* the state file as read, cut into strings */
static struct pair *table;   /* open addressing; table_size is a power of two */
static size_t table_size;
static int loaded;           /* 0: no readable state file, "driver not loaded" */
static struct stat seen;
static char *seen_path;

static size_t hash(const char *key)
{
    size_t h = 14695981039346656037u;
    for (; *key; key++)
        h = (h ^ (unsigned char)*key) * 1099511628211u;
    return h;
}

static struct pair *slot_of(const char *key)
{
    size_t i = hash(key) & (table_size - 1);
    while (table[i].key && strcmp(table[i].key, key) != 0)
        i = (i + 1) & (table_size - 1);
    return &table[i];
}

static void forget_state(void)
{
    free(text);
    free(table);
    free(seen_path);
    text = NULL;
    table = NULL;
    seen_path = NULL;
    loaded = 0;
}

static char *trimmed(char *s)
{
    s += strspn(s, " \t\r");
    size_t n = strlen(s);
    while (n && strchr(" \t\r", s[n - 1]))
        s[--n] = '\0';
    return s;
}

static void parse(void)
{
    size_t lines = 1;
    for (const char *p = text; *p; p++)
        lines += *p == '\n';
    for (table_size = 16; table_size < 2 * lines; table_size *= 2)
        ;
    table = calloc(table_size, sizeof *table);
    if (!table)
        return;
    for (char *next, *line = text; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        char *equals = strchr(line, '=');
        if (!equals)
            continue;
        *equals = '\0';
        char *key = trimmed(line);
        if (*key == '\0' || *key == '#')
            continue;
        *slot_of(key) = (struct pair){key, trimmed(equals + 1)};
    }
    loaded = 1;
}

static char *read_all(int fd, size_t expected)
{
    size_t size = expected + 4096, used = 0;
    char *buffer = malloc(size + 1);
    while (buffer) {
        ssize_t n = read(fd, buffer + used, size - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            free(buffer);
            return NULL;
        }
        if (n == 0) {
            buffer[used] = '\0';
            return buffer;
        }
        used += (size_t)n;
        if (used == size) {
            size *= 2;
            char *bigger = realloc(buffer, size + 1);
            if (!bigger)
                free(buffer);
            buffer = bigger;
        }
    }
    return NULL;
}

/* Reads the state file again if it is another one than at the last call. The mutex is held. */
static void refresh(void)
{
    const char *path = getenv("NVML_STANDIN_STATE");
    struct stat now;
    if (!path || stat(path, &now) != 0) {
        forget_state();
        return;
    }
    if (loaded && strcmp(path, seen_path) == 0 && now.st_mtim.tv_sec == seen.st_mtim.tv_sec
        && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec && now.st_size == seen.st_size && now.st_ino == seen.st_ino
        && now.st_dev == seen.st_dev)
        return;
    forget_state();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    /* What was opened is what is remembered: the path may have been replaced since the stat above. */
    if (fstat(fd, &seen) == 0 && (text = read_all(fd, (size_t)seen.st_size)) != NULL)
        parse();
    close(fd);
    seen_path = strdup(path);
    if (!seen_path)
        forget_state();
}

static const char *lookup(const char *key)
{
    return loaded ? slot_of(key)->value : NULL;
}

__attribute__((format(printf, 1, 2))) static const char *lookup_format(const char *format, ...)
{
    char key[KEY_SIZE];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    return n > 0 && n < KEY_SIZE ? lookup(key) : NULL;
}

/* A value of a GPU: its own line, then the line for all GPUs, then the default. */
static const char *field(int gpu, const char *name, const char *otherwise)
{
    const char *value = lookup_format("gpu%d.%s", gpu, name);
    if (!value)
        value = lookup_format("gpu.%s", name);
    return value ? value : otherwise;
}

static const char *mig_field(int gpu, int mig, const char *name, const char *otherwise)
{
    char full[KEY_SIZE];
    snprintf(full, sizeof full, "mig.%d.%s", mig, name);
    return field(gpu, full, otherwise);
}

static nvmlReturn_t to_number(const char *value, uint64_t *number)
{
    if (strcmp(value, "unsupported") == 0)
        return NOT_SUPPORTED;
    if (*value < '0' || *value > '9')
        return UNKNOWN;
    char *end;
    errno = 0;
    *number = strtoull(value, &end, 0);
    return *end == '\0' && errno == 0 ? SUCCESS : UNKNOWN;
}

/* A number of the stand-in itself, where an unreadable one counts as the default. */
static uint64_t number_or(const char *value, uint64_t otherwise)
{
    uint64_t number;
    return value && to_number(value, &number) == SUCCESS ? number : otherwise;
}

static nvmlReturn_t to_string(const char *value, char *buffer, unsigned size)
{
    if (!buffer)
        return INVALID_ARGUMENT;
    if (strcmp(value, "unsupported") == 0)
        return NOT_SUPPORTED;
    if (strlen(value) + 1 > size)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

static int count_of_gpus(void)
{
    uint64_t count = number_or(lookup("count"), 1);
    return count > MAX_GPUS ? MAX_GPUS : (int)count;
}

static int mig_mode(int gpu)
{
    const char *value = field(gpu, "mig_mode", "-1");
    return strcmp(value, "1") == 0 ? 1 : strcmp(value, "0") == 0 ? 0 : -1;
}

static int count_of_mig_slots(int gpu)
{
    uint64_t slots = mig_mode(gpu) == 1 ? number_or(field(gpu, "mig.max", "7"), 7) : 0;
    return slots > MAX_MIGS ? MAX_MIGS : (int)slots;
}

static int mig_exists(int gpu, int mig)
{
    return mig < count_of_mig_slots(gpu) && (uint64_t)mig < number_or(field(gpu, "mig.count", "0"), 0)
           && !number_or(mig_field(gpu, mig, "absent", "0"), 0);
}

/* ---------------------------------------------------------------------------------------------------------- handles */

/*
 * A handle is a number, never followed: a mark, the generation of nvmlInit that gave it, the GPU and the MIG slot (both
 * plus one, 0 for none). So a handle from before the last full shutdown, NULL and rubbish are all told apart.
 */
static const uint64_t MARK = (uint64_t)0x4e56 << 48;

static nvmlDevice_t encode(int gpu, int mig)
{
    uint64_t place = (uint64_t)(gpu + 1) << 8 | (uint64_t)(mig + 1);
    return (nvmlDevice_t)(uintptr_t)(MARK | (uint64_t)generation << 16 | place);
}

static int decode(nvmlDevice_t device, int *gpu, int *mig)
{
    uint64_t bits = (uintptr_t)device;
    *gpu = (int)(bits >> 8 & 0xff) - 1;
    *mig = (int)(bits & 0xff) - 1;
    if ((bits & (uint64_t)0xffff << 48) == MARK && *gpu >= 0 && *gpu < MAX_GPUS && *mig < MAX_MIGS)
        return (uint32_t)(bits >> 16) == generation;
    *gpu = NO_GPU;
    *mig = NO_MIG;
    return 0;
}

/* ------------------------------------------------------------------------------------------------- around each call */

static void note_call(const char *function, int gpu, int mig)
{
    const char *path = getenv("NVML_STANDIN_CALLS");
    if (!path || !*path)
        return;
    char line[KEY_SIZE];
    int n = gpu < 0 ? snprintf(line, sizeof line, "%s\n", function)
            : mig < 0 ? snprintf(line, sizeof line, "%s %d\n", function, gpu)
                      : snprintf(line, sizeof line, "%s %d.%d\n", function, gpu, mig);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    while (write(fd, line, (size_t)n) < 0 && errno == EINTR)
        ;
    close(fd);
}

static int names(const char *list, const char *function)
{
    size_t length = strlen(function);
    while (list && *list) {
        list += strspn(list, ", \t");
        size_t n = strcspn(list, ", \t");
        if ((n == 1 && *list == '*') || (n == length && strncmp(list, function, n) == 0))
            return 1;
        list += n;
    }
    return 0;
}

/* "gpuN.WHAT.FUNCTION", then "WHAT.FUNCTION", then "WHAT.*". */
static const char *setting(const char *what, const char *function, int gpu)
{
    const char *value = gpu >= 0 ? lookup_format("gpu%d.%s.%s", gpu, what, function) : NULL;
    if (!value)
        value = lookup_format("%s.%s", what, function);
    return value ? value : lookup_format("%s.*", what);
}

static void pause_unlocked(uint64_t nanoseconds)
{
    struct timespec left = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    pthread_mutex_unlock(&mutex);
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&mutex);
}

/*
 * What every call does first. Returns with the mutex held, whatever it answers: each function ends in leave(). The
 * mutex is free while a call hangs or is slow, so other threads go on. initialised: 0 for what initialises.
 */
static nvmlReturn_t enter(const char *function, int gpu, int mig, int initialised)
{
    pthread_mutex_lock(&mutex);
    note_call(function, gpu, mig);
    refresh();
    while (names(lookup("hang"), function) || (gpu >= 0 && names(lookup_format("gpu%d.hang", gpu), function))) {
        pause_unlocked(PAUSE_NS);
        refresh();
    }
    uint64_t delay = number_or(setting("delay_ms", function, gpu), 0);
    if (delay) {
        pause_unlocked(delay * 1000000);
        refresh();
    }
    if (initialised && refcount == 0)
        return UNINITIALIZED;
    const char *error = setting("error", function, gpu);
    if (error)
        return (nvmlReturn_t)number_or(error, UNKNOWN);
    return SUCCESS;
}

static nvmlReturn_t enter_system(const char *function)
{
    nvmlReturn_t code = enter(function, NO_GPU, NO_MIG, 1);
    return code == SUCCESS && !loaded ? DRIVER_NOT_LOADED : code;
}

/* After enter(): is the GPU still there? */
static nvmlReturn_t present(int gpu)
{
    if (!loaded)
        return DRIVER_NOT_LOADED;
    if (gpu >= count_of_gpus() || number_or(lookup_format("gpu%d.lost", gpu), 0))
        return GPU_IS_LOST;
    return SUCCESS;
}

static nvmlReturn_t enter_device(const char *function, nvmlDevice_t device, int *gpu, int *mig)
{
    decode(device, gpu, mig);
    nvmlReturn_t code = enter(function, *gpu, *mig, 1);
    if (code != SUCCESS)
        return code;
    if (!decode(device, gpu, mig)) /* again: the library may have been shut down while the call hung */
        return INVALID_ARGUMENT;
    code = present(*gpu);
    return code == SUCCESS && *mig >= 0 && !mig_exists(*gpu, *mig) ? INVALID_ARGUMENT : code;
}

/* For the calls that a MIG device does not answer. */
static nvmlReturn_t enter_gpu(const char *function, nvmlDevice_t device, int *gpu)
{
    int mig;
    nvmlReturn_t code = enter_device(function, device, gpu, &mig);
    return code == SUCCESS && mig >= 0 ? NOT_SUPPORTED : code;
}

static nvmlReturn_t leave(nvmlReturn_t code)
{
    pthread_mutex_unlock(&mutex);
    return code;
}

/* ------------------------------------------------------------------------------------------------ values of one GPU */

static const char *uuid_of(int gpu, int mig, char *buffer, size_t size)
{
    if (mig >= 0) {
        snprintf(buffer, size, "MIG-%08x-%04x-5e1f-9c2b-%012x", gpu, mig, gpu);
        return mig_field(gpu, mig, "uuid", buffer);
    }
    snprintf(buffer, size, "GPU-%08x-4d67-5e1f-9c2b-%012x", gpu, gpu);
    return field(gpu, "uuid", buffer);
}

struct memory {
    uint64_t total, used, reserved;
    nvmlReturn_t has_reserved;
};

static nvmlReturn_t memory_of(int gpu, int mig, struct memory *memory)
{
    const char *total, *used, *reserved;
    if (mig >= 0) {
        total = mig_field(gpu, mig, "memory_total", "10200547328");
        used = mig_field(gpu, mig, "memory_used", "1073741824");
        reserved = mig_field(gpu, mig, "memory_reserved", "0");
    } else {
        total = field(gpu, "memory_total", "85520809984");
        used = field(gpu, "memory_used", "21474836480");
        reserved = field(gpu, "memory_reserved", "657457152");
    }
    nvmlReturn_t code = to_number(total, &memory->total);
    if (code == SUCCESS)
        code = to_number(used, &memory->used);
    memory->reserved = 0;
    memory->has_reserved = to_number(reserved, &memory->reserved);
    return code;
}

static uint64_t free_of(const struct memory *memory)
{
    uint64_t taken = memory->used + memory->reserved;
    return taken > memory->total ? 0 : memory->total - taken;
}

/* A call that answers one unsigned int. */
static nvmlReturn_t answer_uint(const char *function, nvmlDevice_t device, const char *name, const char *otherwise,
                                unsigned *out)
{
    int gpu;
    uint64_t number = 0;
    nvmlReturn_t code = enter_gpu(function, device, &gpu);
    if (code == SUCCESS && !out)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = to_number(field(gpu, name, otherwise), &number);
    if (code == SUCCESS)
        *out = (unsigned)number;
    return leave(code);
}

static nvmlReturn_t answer_ulonglong(const char *function, nvmlDevice_t device, const char *name, const char *otherwise,
                                     unsigned long long *out)
{
    int gpu;
    uint64_t number = 0;
    nvmlReturn_t code = enter_gpu(function, device, &gpu);
    if (code == SUCCESS && !out)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = to_number(field(gpu, name, otherwise), &number);
    if (code == SUCCESS)
        *out = number;
    return leave(code);
}

/* ------------------------------------------------------------------------------------------------------ the library */

static nvmlReturn_t initialise(const char *function)
{
    nvmlReturn_t code = enter(function, NO_GPU, NO_MIG, 0);
    if (code == SUCCESS)
        code = loaded ? (nvmlReturn_t)number_or(lookup("init"), lookup("init") ? UNKNOWN : SUCCESS) : DRIVER_NOT_LOADED;
    if (code == SUCCESS && refcount++ == 0)
        generation++;
    return leave(code);
}

#ifndef WITHOUT_nvmlInitWithFlags
EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    return initialise(__func__);
}
#endif

#ifndef WITHOUT_nvmlInit_v2
EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return initialise(__func__);
}
#endif

#ifndef WITHOUT_nvmlShutdown
EXPORT nvmlReturn_t nvmlShutdown(void)
{
    nvmlReturn_t code = enter(__func__, NO_GPU, NO_MIG, 1);
    if (code == SUCCESS)
        refcount--;
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlErrorString
/* It asks no driver: neither state nor calls concern it. */
EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 5: return "Already Initialized";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case 8: return "Insufficient External Power";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 11: return "Interrupt Request Issue";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case 14: return "Corrupted infoROM";
    case GPU_IS_LOST: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 17: return "GPU access blocked by the operating system";
    case 18: return "Driver/library version mismatch";
    case 19: return "In use by another client";
    case 20: return "Insufficient Memory";
    case 21: return "No data";
    case 22: return "vGPU ECC is not supported";
    case 23: return "Insufficient Resources";
    case 24: return "Freq not supported";
    case ARGUMENT_VERSION_MISMATCH: return "Argument Version Mismatch";
    case 26: return "Deprecated";
    case 27: return "Not Ready";
    case 28: return "GPU Not Found";
    case 29: return "Invalid State";
    default: return "Unknown Error";
    }
}
#endif

#ifndef WITHOUT_nvmlSystemGetDriverVersion
EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    nvmlReturn_t code = enter_system(__func__);
    const char *value = lookup("driver");
    return leave(code == SUCCESS ? to_string(value ? value : "550.54.15", version, length) : code);
}
#endif

#ifndef WITHOUT_nvmlSystemGetNVMLVersion
EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    nvmlReturn_t code = enter_system(__func__);
    const char *value = lookup("nvml");
    return leave(code == SUCCESS ? to_string(value ? value : "12.550.54.15", version, length) : code);
}
#endif

static nvmlReturn_t cuda_version(const char *function, int *version)
{
    nvmlReturn_t code = enter_system(function);
    const char *value = lookup("cuda");
    uint64_t number = 12040;
    if (code == SUCCESS && !version)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS && value)
        code = to_number(value, &number);
    if (code == SUCCESS)
        *version = (int)number;
    return leave(code);
}

#ifndef WITHOUT_nvmlSystemGetCudaDriverVersion
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return cuda_version(__func__, version);
}
#endif

#ifndef WITHOUT_nvmlSystemGetCudaDriverVersion_v2
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return cuda_version(__func__, version);
}
#endif

/* ---------------------------------------------------------------------------------------------------- finding a GPU */

#ifndef WITHOUT_nvmlDeviceGetCount_v2
EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    nvmlReturn_t code = enter_system(__func__);
    if (code == SUCCESS && !count)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        *count = (unsigned)count_of_gpus();
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetHandleByIndex_v2
EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    int gpu = index < MAX_GPUS ? (int)index : NO_GPU;
    nvmlReturn_t code = enter(__func__, gpu, NO_MIG, 1);
    if (code == SUCCESS && !loaded)
        code = DRIVER_NOT_LOADED;
    if (code == SUCCESS && (!device || gpu < 0 || gpu >= count_of_gpus()))
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = present(gpu);
    if (code == SUCCESS)
        *device = encode(gpu, NO_MIG);
    return leave(code);
}
#endif

static int find_uuid(const char *wanted, int *gpu, int *mig)
{
    char buffer[KEY_SIZE];
    int gpus = count_of_gpus();
    for (*gpu = 0; *gpu < gpus; ++*gpu) {
        int migs = count_of_mig_slots(*gpu);
        for (*mig = NO_MIG; *mig < migs; ++*mig)
            if ((*mig < 0 || mig_exists(*gpu, *mig)) && strcmp(uuid_of(*gpu, *mig, buffer, sizeof buffer), wanted) == 0)
                return 1;
    }
    *gpu = NO_GPU;
    *mig = NO_MIG;
    return 0;
}

#ifndef WITHOUT_nvmlDeviceGetHandleByUUID
EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    int gpu = NO_GPU, mig = NO_MIG;
    if (uuid) { /* before the call is noted, and for settings of that GPU only */
        pthread_mutex_lock(&mutex);
        refresh();
        find_uuid(uuid, &gpu, &mig);
        pthread_mutex_unlock(&mutex);
    }
    nvmlReturn_t code = enter(__func__, gpu, mig, 1);
    if (code == SUCCESS && !loaded)
        code = DRIVER_NOT_LOADED;
    if (code == SUCCESS && (!uuid || !device))
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = find_uuid(uuid, &gpu, &mig) ? present(gpu) : NOT_FOUND;
    if (code == SUCCESS)
        *device = encode(gpu, mig);
    return leave(code);
}
#endif

/* --------------------------------------------------------------------------------------------------------- identity */

#ifndef WITHOUT_nvmlDeviceGetName
EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length)
{
    int gpu, mig;
    nvmlReturn_t code = enter_device(__func__, device, &gpu, &mig);
    if (code == SUCCESS)
        code = to_string(mig < 0 ? field(gpu, "name", "NVIDIA H100 80GB HBM3")
                                 : mig_field(gpu, mig, "name", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
                         name, length);
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetUUID
EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length)
{
    int gpu, mig;
    char buffer[KEY_SIZE];
    nvmlReturn_t code = enter_device(__func__, device, &gpu, &mig);
    if (code == SUCCESS)
        code = to_string(uuid_of(gpu, mig, buffer, sizeof buffer), uuid, length);
    return leave(code);
}
#endif

typedef struct {
    char busIdLegacy[16];
    unsigned domain;
    unsigned bus;
    unsigned device;
    unsigned pciDeviceId;
    unsigned pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

#ifndef WITHOUT_nvmlDeviceGetPciInfo_v3
EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    int gpu;
    char otherwise[KEY_SIZE];
    unsigned domain, bus, slot, function;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && !pci)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS) {
        snprintf(otherwise, sizeof otherwise, "00000000:%02X:00.0", 0x10 + gpu);
        const char *value = field(gpu, "pci_bus_id", otherwise);
        if (strcmp(value, "unsupported") == 0)
            code = NOT_SUPPORTED;
        else if (sscanf(value, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4)
            code = UNKNOWN;
    }
    if (code == SUCCESS) {
        *pci = (nvmlPciInfo_t){.domain = domain, .bus = bus, .device = slot, .pciDeviceId = 0x233010de,
                               .pciSubSystemId = 0x16c110de};
        snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", domain & 0xffff, bus & 0xff,
                 slot & 0xff);
        snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", domain, bus & 0xff, slot & 0xff);
    }
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetIndex
EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
    int gpu, mig;
    nvmlReturn_t code = enter_device(__func__, device, &gpu, &mig);
    if (code == SUCCESS && !index)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        *index = (unsigned)(mig < 0 ? gpu : mig);
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMinorNumber
EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor)
{
    int gpu, mig;
    char otherwise[16];
    decode(device, &gpu, &mig);
    snprintf(otherwise, sizeof otherwise, "%d", gpu);
    return answer_uint(__func__, device, "minor", otherwise, minor);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetBusType
EXPORT nvmlReturn_t nvmlDeviceGetBusType(nvmlDevice_t device, unsigned *type)
{
    return answer_uint(__func__, device, "bus_type", "2", type);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetArchitecture
EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned *architecture)
{
    return answer_uint(__func__, device, "architecture", "9", architecture);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMemoryBusWidth
EXPORT nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned *width)
{
    return answer_uint(__func__, device, "memory_bus_width", "5120", width);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetPersistenceMode
EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned *mode)
{
    return answer_uint(__func__, device, "persistence", "1", mode);
}
#endif

/* ------------------------------------------------------------------------------------------- utilization and memory */

typedef struct {
    unsigned gpu;
    unsigned memory;
} nvmlUtilization_t;

/* Under MIG the parent does not know its utilization, unless the state file says that it does. */
static const char *utilization_of(int gpu, const char *name, const char *otherwise)
{
    return field(gpu, name, mig_mode(gpu) == 1 ? "unsupported" : otherwise);
}

#ifndef WITHOUT_nvmlDeviceGetUtilizationRates
EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    int gpu;
    uint64_t of_gpu = 0, of_memory = 0;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && !utilization)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = to_number(utilization_of(gpu, "utilization", "37"), &of_gpu);
    if (code == SUCCESS)
        code = to_number(field(gpu, "memory_utilization", "12"), &of_memory);
    if (code == SUCCESS)
        *utilization = (nvmlUtilization_t){(unsigned)of_gpu, (unsigned)of_memory};
    return leave(code);
}
#endif

static nvmlReturn_t codec_utilization(const char *function, nvmlDevice_t device, const char *name, unsigned *percent,
                                      unsigned *period)
{
    int gpu;
    uint64_t number = 0;
    nvmlReturn_t code = enter_gpu(function, device, &gpu);
    if (code == SUCCESS && (!percent || !period))
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = to_number(utilization_of(gpu, name, "0"), &number);
    if (code == SUCCESS) {
        *percent = (unsigned)number;
        *period = 167000;
    }
    return leave(code);
}

#ifndef WITHOUT_nvmlDeviceGetEncoderUtilization
EXPORT nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned *percent, unsigned *period)
{
    return codec_utilization(__func__, device, "encoder", percent, period);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetDecoderUtilization
EXPORT nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned *percent, unsigned *period)
{
    return codec_utilization(__func__, device, "decoder", percent, period);
}
#endif

typedef struct {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
} nvmlMemory_t;

typedef struct {
    unsigned version;
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
} nvmlMemory_v2_t;

#ifndef WITHOUT_nvmlDeviceGetMemoryInfo
/* The first version counts what the driver keeps for itself as used. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out)
{
    int gpu, mig;
    struct memory memory = {0};
    nvmlReturn_t code = enter_device(__func__, device, &gpu, &mig);
    if (code == SUCCESS && !out)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = memory_of(gpu, mig, &memory);
    if (code == SUCCESS)
        *out = (nvmlMemory_t){memory.total, free_of(&memory), memory.used + memory.reserved};
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMemoryInfo_v2
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *out)
{
    const unsigned version = sizeof *out | 2u << 24;
    int gpu, mig;
    struct memory memory = {0};
    nvmlReturn_t code = enter_device(__func__, device, &gpu, &mig);
    if (code == SUCCESS && !out)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS && out->version != version)
        code = ARGUMENT_VERSION_MISMATCH;
    if (code == SUCCESS)
        code = memory_of(gpu, mig, &memory);
    if (code == SUCCESS)
        code = memory.has_reserved;
    if (code == SUCCESS)
        *out = (nvmlMemory_v2_t){version, memory.total, memory.reserved, free_of(&memory), memory.used};
    return leave(code);
}
#endif

/* ------------------------------------------------------------------------------------ temperature, power and clocks */

enum { SENSOR_GPU = 0, CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEM = 2 };

#ifndef WITHOUT_nvmlDeviceGetTemperature
EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *temperature)
{
    return answer_uint(__func__, device, "temperature", "45", sensor == SENSOR_GPU ? temperature : NULL);
}
#endif

typedef struct {
    unsigned version;
    unsigned sensorType;
    int temperature;
} nvmlTemperature_v1_t;

#ifndef WITHOUT_nvmlDeviceGetTemperatureV
EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *out)
{
    int gpu;
    uint64_t number = 0;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && !out)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS && out->version != (sizeof *out | 1u << 24))
        code = ARGUMENT_VERSION_MISMATCH;
    if (code == SUCCESS && out->sensorType != SENSOR_GPU)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = to_number(field(gpu, "temperature", "45"), &number);
    if (code == SUCCESS)
        out->temperature = (int)number;
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetFanSpeed
EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned *percent)
{
    return answer_uint(__func__, device, "fan", "unsupported", percent); /* such a GPU has no fan of its own */
}
#endif

#ifndef WITHOUT_nvmlDeviceGetPowerUsage
EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts)
{
    return answer_uint(__func__, device, "power_mw", "312500", milliwatts);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetEnforcedPowerLimit
EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts)
{
    return answer_uint(__func__, device, "power_limit_mw", "700000", milliwatts);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetTotalEnergyConsumption
EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules)
{
    return answer_ulonglong(__func__, device, "energy_mj", "123456789012", millijoules);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetClockInfo
EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned type, unsigned *megahertz)
{
    if (type == CLOCK_MEM)
        return answer_uint(__func__, device, "mem_clock", "2619", megahertz);
    if (type != CLOCK_SM && type != CLOCK_GRAPHICS)
        megahertz = NULL;
    return answer_uint(__func__, device, "sm_clock", "1755", megahertz);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetPerformanceState
EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, unsigned *state)
{
    return answer_uint(__func__, device, "pstate", "0", state);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetCurrentClocksThrottleReasons
EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    return answer_ulonglong(__func__, device, "throttle", "0", reasons);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetCurrentClocksEventReasons
EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    return answer_ulonglong(__func__, device, "throttle", "0", reasons);
}
#endif

/* ----------------------------------------------------------------------------------------------------- ECC and PCIe */

#ifndef WITHOUT_nvmlDeviceGetTotalEccErrors
/* The counts since the machine was made are those since the last load of the driver, unless given apart. */
EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned error, unsigned counter,
                                                unsigned long long *count)
{
    const char *name = error == 0 ? "ecc_corrected" : "ecc_uncorrected";
    const char *aggregate = error == 0 ? "ecc_corrected_aggregate" : "ecc_uncorrected_aggregate";
    int gpu;
    uint64_t number = 0;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && (!count || error > 1 || counter > 1))
        code = INVALID_ARGUMENT;
    if (code == SUCCESS) {
        const char *value = field(gpu, name, "0");
        code = to_number(counter == 0 ? value : field(gpu, aggregate, value), &number);
    }
    if (code == SUCCESS)
        *count = number;
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetCurrPcieLinkGeneration
EXPORT nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned *generations)
{
    return answer_uint(__func__, device, "pcie_gen", "5", generations);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMaxPcieLinkGeneration
EXPORT nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned *generations)
{
    return answer_uint(__func__, device, "pcie_gen_max", "5", generations);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetCurrPcieLinkWidth
EXPORT nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned *lanes)
{
    return answer_uint(__func__, device, "pcie_width", "16", lanes);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMaxPcieLinkWidth
EXPORT nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned *lanes)
{
    return answer_uint(__func__, device, "pcie_width_max", "16", lanes);
}
#endif

/* -------------------------------------------------------------------------------------------------------------- MIG */

#ifndef WITHOUT_nvmlDeviceGetMigMode
EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    int gpu;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && (!current || !pending))
        code = INVALID_ARGUMENT;
    if (code == SUCCESS && mig_mode(gpu) < 0)
        code = NOT_SUPPORTED;
    if (code == SUCCESS)
        *current = *pending = (unsigned)mig_mode(gpu);
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMaxMigDeviceCount
EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count)
{
    int gpu;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && !count)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        *count = (unsigned)count_of_mig_slots(gpu); /* 0, and no error, where MIG is off or not supported */
    return leave(code);
}
#endif

#ifndef WITHOUT_nvmlDeviceGetMigDeviceHandleByIndex
EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *out)
{
    int gpu;
    nvmlReturn_t code = enter_gpu(__func__, device, &gpu);
    if (code == SUCCESS && !out)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS && mig_mode(gpu) < 0)
        code = NOT_SUPPORTED;
    if (code == SUCCESS && index >= (unsigned)count_of_mig_slots(gpu))
        code = mig_mode(gpu) == 1 ? INVALID_ARGUMENT : NOT_FOUND;
    if (code == SUCCESS && !mig_exists(gpu, (int)index))
        code = NOT_FOUND;
    if (code == SUCCESS)
        *out = encode(gpu, (int)index);
    return leave(code);
}
#endif

/* -------------------------------------------------------------------------------------------------------- processes */

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId;
    unsigned computeInstanceId;
} nvmlProcessInfo_t;

#ifndef WITHOUT_nvmlDeviceGetComputeRunningProcesses_v3
EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                            nvmlProcessInfo_t *infos)
{
    int gpu, mig;
    nvmlReturn_t code = enter_device(__func__, device, &gpu, &mig);
    if (code == SUCCESS && (!count || (*count && !infos)))
        code = INVALID_ARGUMENT;
    if (code == SUCCESS) {
        const char *list = mig < 0 ? field(gpu, "processes", "") : mig_field(gpu, mig, "processes", "");
        unsigned room = *count, found = 0;
        if (strcmp(list, "unsupported") == 0)
            code = NOT_SUPPORTED;
        while (code == SUCCESS && *list) {
            unsigned pid;
            char bytes[32];
            int length = 0;
            uint64_t used = UINT64_MAX; /* "unsupported" here is NVML_VALUE_NOT_AVAILABLE */
            if (sscanf(list, "%u:%31[^,]%n", &pid, bytes, &length) != 2 || to_number(bytes, &used) == UNKNOWN) {
                code = UNKNOWN;
                break;
            }
            if (found < room)
                infos[found] = (nvmlProcessInfo_t){pid, used, mig < 0 ? UINT32_MAX : (unsigned)mig,
                                                   mig < 0 ? UINT32_MAX : 0};
            found++;
            list += length;
            list += *list == ',';
        }
        if (code == SUCCESS) {
            *count = found;
            if (found > room)
                code = INSUFFICIENT_SIZE;
        }
    }
    return leave(code);
}
#endif
