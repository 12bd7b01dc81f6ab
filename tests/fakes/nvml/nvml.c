/* A libnvidia-ml.so.1 whose machine is the text file $FAKE_NVML, read again at every call.

   Lines are `key = value`, the last of equal keys counts; `gpu.*.KEY` is what every `gpu.N.KEY` is by default.
     driver            its version; `none`, or no such file: "Driver Not Loaded"
     count             GPUs, by index from 0
     mark              in every UUID that nobody set (XXXX-XXXX): claims are the whole machine's, and tests share it
     delay_ms          that long takes every call; `delay_ms.FUNCTION` that one
     crash.FUNCTION    it ends the process that calls it
     error.FUNCTION    the NVML code that it returns; `gpu.N.error.FUNCTION` for one GPU
     procs, late       folders, see below
     cuda              version of the driver's CUDA (13000 is 13.0)
     gpu.N.            uuid name mem_mib used_mib (idle) mig (0, 1; -1: not supported) slices (MIB,MIB…) virtualization lost late_s
     gpu.N.            util (%) temp (C) power_mw limit_mw ecc (0, 1; -1: not supported) ecc_errors numa (-1: not supported)
     gpu.N.            nvlink: the cards that it reaches (1,2,3)

   A holder of GPU N is a file PROCS/N/PID (of its slice S: PROCS/N.S/PID) of words: MIB or `na`, and then any of
     graphics | both   in which list it stands (default: compute)
     start=TICKS       only while the pid is the process with this start time
     linger            it stays when no such process exists
   A dead holder's file goes away by itself. With `gpu.N.late_s` its memory stays in use that many seconds longer, -1: for
   ever, as a file LATE/N/PID of two words: MIB, and until when (wall clock, ms). Pids are those of the caller's namespace. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int ret;
typedef struct device { int gpu, slice; } *dev; /* slice -1: the whole card */
typedef struct { u32 pid; u64 used; u32 gpu_instance, compute_instance; } process;
typedef struct { u64 total, free, used; } memory;

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, LOST = 15 };
enum { COMPUTE = 1, GRAPHICS = 2 };
#define PUBLIC __attribute__((visibility("default")))
#define NOT_AVAILABLE 0xffffffffffffffffULL
#define MAX_GPUS 64
#define MAX_SLICES 8
#define TEXT 512

static struct device devices[MAX_GPUS][MAX_SLICES + 1];
static int initialized;

/* --- the file -------------------------------------------------------------------------------------------------------- */

static char *strip(char *text) {
  while (*text == ' ' || *text == '\t') text++;
  char *end = text + strlen(text);
  while (end > text && strchr(" \t\r\n", end[-1])) *--end = 0;
  return text;
}

/* -1: no such file; 0: no such key; 1: it is in `out`. */
static int get(const char *key, char *out) {
  const char *path = getenv("FAKE_NVML");
  FILE *file = path ? fopen(path, "re") : NULL;
  char line[2 * TEXT];
  int found = 0;
  if (!file) return -1;
  while (fgets(line, sizeof line, file)) {
    char *value = strchr(line, '=');
    if (!value) continue;
    *value++ = 0;
    if (strcmp(strip(line), key)) continue;
    snprintf(out, TEXT, "%s", strip(value));
    found = 1;
  }
  fclose(file);
  return found;
}

static long number(const char *key, long otherwise) {
  char text[TEXT];
  return get(key, text) == 1 ? strtol(text, NULL, 0) : otherwise;
}

static const char *of(int gpu, const char *key, char *out, const char *otherwise) {
  char full[TEXT];
  snprintf(full, sizeof full, "gpu.%d.%s", gpu, key);
  if (get(full, out) == 1) return out;
  snprintf(full, sizeof full, "gpu.*.%s", key);
  if (get(full, out) == 1) return out;
  return strcpy(out, otherwise);
}

static long number_of(int gpu, const char *key, long otherwise) {
  char text[TEXT], fallback[32];
  snprintf(fallback, sizeof fallback, "%ld", otherwise);
  return strtol(of(gpu, key, text, fallback), NULL, 0);
}

/* What every call does first: take its time, and fail if it is told to. */
static ret enter(const char *function) {
  char key[TEXT];
  snprintf(key, sizeof key, "delay_ms.%s", function);
  long ms = number(key, number("delay_ms", 0));
  if (ms) nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
  snprintf(key, sizeof key, "crash.%s", function);
  if (number(key, 0)) abort();
  snprintf(key, sizeof key, "error.%s", function);
  return number(key, OK);
}

static ret enter_device(const char *function, dev device) {
  char key[TEXT];
  ret code = enter(function);
  if (code) return code;
  if (!initialized) return UNINITIALIZED;
  if (!device || device->gpu >= number("count", 0)) return INVALID;
  snprintf(key, sizeof key, "error.%s", function);
  code = number_of(device->gpu, key, OK);
  return code ? code : number_of(device->gpu, "lost", 0) ? LOST : OK;
}
#define ENTER() do { ret code_ = enter(__func__); if (code_) return code_; if (!initialized) return UNINITIALIZED; } while (0)
#define ENTER_DEVICE(d) do { ret code_ = enter_device(__func__, d); if (code_) return code_; } while (0)

static ret give(char *out, u32 room, const char *text) {
  if (strlen(text) + 1 > room) return TOO_SMALL;
  strcpy(out, text);
  return OK;
}

static dev handle(int gpu, int slice) {
  devices[gpu][slice + 1] = (struct device){gpu, slice};
  return &devices[gpu][slice + 1];
}

static long slice_mib(int gpu, int slice) { /* 0: there is no such slice */
  char text[TEXT], *rest = text;
  of(gpu, "slices", text, "");
  for (char *word = strsep(&rest, ","); word; word = strsep(&rest, ","))
    if (slice-- == 0) return strtol(word, NULL, 0);
  return 0;
}

/* --- who holds memory --------------------------------------------------------------------------------------------------- */

static u64 now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (u64)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int folder(dev device, const char *what, char *out) {
  char root[TEXT];
  if (get(what, root) != 1) return 0;
  if (device->slice < 0) snprintf(out, 2 * TEXT, "%s/%d", root, device->gpu);
  else snprintf(out, 2 * TEXT, "%s/%d.%d", root, device->gpu, device->slice);
  return 1;
}

static int read_words(const char *path, char *out) {
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  out[fread(out, 1, TEXT - 1, file)] = 0;
  fclose(file);
  return *out != 0;
}

static int lives(int pid, u64 start) { /* start 0: whichever process has the pid */
  char path[64], text[2 * TEXT] = {0}, state = 0;
  u64 born = 0;
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *file = fopen(path, "re");
  if (!file) return kill(pid, 0) == 0 || errno == EPERM; /* hidepid */
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  char *rest = strrchr(text, ')');
  if (!rest || sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state, &born) != 2)
    return 0;
  return state != 'Z' && state != 'X' && (!start || start == born);
}

static void bury(dev device, const char *file, const char *name, long mib) {
  char dir[2 * TEXT], path[3 * TEXT], text[64];
  long late_s = number_of(device->gpu, "late_s", 0);
  if (unlink(file) || !late_s || !folder(device, "late", dir)) return; /* of two callers one buries */
  mkdir(dir, 0700);
  snprintf(path, sizeof path, "%s/%s", dir, name);
  snprintf(text, sizeof text, "%ld %llu", mib, late_s < 0 ? NOT_AVAILABLE : now_ms() + late_s * 1000);
  FILE *late = fopen(path, "we");
  if (late) { fputs(text, late); fclose(late); }
}

/* How many stand in this list; the first `room` of them in `out`. `mib`: what all of both lists hold. */
static u32 holders(dev device, int list, process *out, u32 room, long *mib) {
  char dir[2 * TEXT], path[3 * TEXT], text[TEXT];
  u32 found = 0;
  DIR *all = folder(device, "procs", dir) ? opendir(dir) : NULL;
  for (struct dirent *entry; all && (entry = readdir(all));) {
    int pid = atoi(entry->d_name);
    snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
    if (pid <= 0 || !read_words(path, text)) continue;
    char *born = strstr(text, "start=");
    int known = !strncmp(text, "na", 2), lists = strstr(text, "both") ? COMPUTE | GRAPHICS : strstr(text, "graphics") ? GRAPHICS : COMPUTE;
    long held = known ? 0 : strtol(text, NULL, 10);
    if (!strstr(text, "linger") && !lives(pid, born ? strtoull(born + 6, NULL, 10) : 0)) {
      bury(device, path, entry->d_name, held);
      continue;
    }
    if (mib) *mib += held;
    if (!(lists & list)) continue;
    if (found < room) out[found] = (process){pid, known ? NOT_AVAILABLE : (u64)held << 20, 0xffffffff, 0xffffffff};
    found++;
  }
  if (all) closedir(all);
  return found;
}

static long late_mib(dev device) {
  char dir[2 * TEXT], path[3 * TEXT], text[TEXT];
  long sum = 0;
  DIR *all = folder(device, "late", dir) ? opendir(dir) : NULL;
  for (struct dirent *entry; all && (entry = readdir(all));) {
    long mib;
    u64 until;
    snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
    if (*entry->d_name != '.' && read_words(path, text) && sscanf(text, "%ld %llu", &mib, &until) == 2 && now_ms() < until) sum += mib;
  }
  if (all) closedir(all);
  return sum;
}

static ret list_holders(dev device, int list, u32 *count, process *out) {
  u32 room = out ? *count : 0;
  *count = holders(device, list, out, room, NULL);
  return *count > room ? TOO_SMALL : OK;
}

/* --- what a program calls -------------------------------------------------------------------------------------------------- */

PUBLIC ret nvmlInitWithFlags(u32 flags) {
  (void)flags;
  char text[TEXT];
  ret code = enter(__func__);
  if (code) return code;
  if (get("driver", text) < 0 || !strcmp(text, "none")) return NO_DRIVER;
  initialized++;
  return OK;
}
PUBLIC ret nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
PUBLIC ret nvmlShutdown(void) {
  ENTER();
  initialized--;
  return OK;
}
PUBLIC const char *nvmlErrorString(ret code) {
  switch (code) {
  case OK: return "Success";
  case UNINITIALIZED: return "Uninitialized";
  case INVALID: return "Invalid Argument";
  case NOT_SUPPORTED: return "Not Supported";
  case 4: return "Insufficient Permissions";
  case NOT_FOUND: return "Not Found";
  case TOO_SMALL: return "Insufficient Size";
  case NO_DRIVER: return "Driver Not Loaded";
  case LOST: return "GPU is lost";
  case 16: return "GPU requires restart";
  case 18: return "Driver/library version mismatch";
  }
  return "Unknown Error";
}
PUBLIC ret nvmlSystemGetDriverVersion(char *out, u32 room) {
  char text[TEXT] = "580.95.05";
  ENTER();
  get("driver", text);
  return give(out, room, text);
}
PUBLIC ret nvmlDeviceGetCount_v2(u32 *out) {
  ENTER();
  *out = number("count", 0);
  return OK;
}
PUBLIC ret nvmlDeviceGetHandleByIndex_v2(u32 index, dev *out) {
  ENTER();
  if (index >= MAX_GPUS || (long)index >= number("count", 0)) return INVALID;
  *out = handle(index, -1);
  return enter_device(__func__, *out);
}
PUBLIC ret nvmlDeviceGetUUID(dev device, char *out, u32 room) {
  char text[TEXT], mark[TEXT] = "0000-0000", fallback[2 * TEXT];
  ENTER_DEVICE(device);
  get("mark", mark);
  snprintf(fallback, sizeof fallback, "%s-%08d-%s-0000-%012d", device->slice < 0 ? "GPU" : "MIG", device->gpu, mark, device->slice + 1);
  return give(out, room, device->slice < 0 ? of(device->gpu, "uuid", text, fallback) : fallback);
}
PUBLIC ret nvmlDeviceGetName(dev device, char *out, u32 room) {
  char text[TEXT];
  ENTER_DEVICE(device);
  return give(out, room, of(device->gpu, "name", text, "NVIDIA H200"));
}
PUBLIC ret nvmlDeviceGetMemoryInfo(dev device, memory *out) {
  ENTER_DEVICE(device);
  long mib = device->slice < 0 ? number_of(device->gpu, "used_mib", 615) : 0;
  holders(device, 0, NULL, 0, &mib);
  mib += late_mib(device);
  out->total = (u64)(device->slice < 0 ? number_of(device->gpu, "mem_mib", 143771) : slice_mib(device->gpu, device->slice)) << 20;
  out->used = (u64)mib << 20 < out->total ? (u64)mib << 20 : out->total;
  out->free = out->total - out->used;
  return OK;
}
PUBLIC ret nvmlDeviceGetComputeRunningProcesses_v3(dev device, u32 *count, process *out) {
  ENTER_DEVICE(device);
  return list_holders(device, COMPUTE, count, out);
}
PUBLIC ret nvmlDeviceGetGraphicsRunningProcesses_v3(dev device, u32 *count, process *out) {
  ENTER_DEVICE(device);
  return list_holders(device, GRAPHICS, count, out);
}
PUBLIC ret nvmlDeviceGetVirtualizationMode(dev device, u32 *out) {
  ENTER_DEVICE(device);
  *out = number_of(device->gpu, "virtualization", 0);
  return OK;
}
PUBLIC ret nvmlDeviceGetMigMode(dev device, u32 *now, u32 *pending) {
  ENTER_DEVICE(device);
  long mode = number_of(device->gpu, "mig", 0);
  if (mode < 0) return NOT_SUPPORTED;
  *now = *pending = mode;
  return OK;
}
PUBLIC ret nvmlDeviceGetMaxMigDeviceCount(dev device, u32 *out) {
  ENTER_DEVICE(device);
  *out = MAX_SLICES - 1;
  return OK;
}
PUBLIC ret nvmlDeviceGetMigDeviceHandleByIndex(dev device, u32 index, dev *out) {
  ENTER_DEVICE(device);
  if (index >= MAX_SLICES || !slice_mib(device->gpu, index)) return NOT_FOUND;
  *out = handle(device->gpu, index);
  return OK;
}

/* --- what only people and placement ask ---------------------------------------------------------------------------------- */

#define ASK(function, key, otherwise) \
  PUBLIC ret function(dev device, u32 *out) { \
    ENTER_DEVICE(device); \
    long value = number_of(device->gpu, key, otherwise); \
    if (value < 0) return NOT_SUPPORTED; \
    *out = value; \
    return OK; \
  }
ASK(nvmlDeviceGetPowerUsage, "power_mw", 76500)
ASK(nvmlDeviceGetEnforcedPowerLimit, "limit_mw", 700000)

PUBLIC ret nvmlSystemGetCudaDriverVersion_v2(int *out) {
  ENTER();
  *out = number("cuda", 13000);
  return OK;
}
PUBLIC ret nvmlDeviceGetUtilizationRates(dev device, u32 *out) { /* of its cores, of its memory's bandwidth */
  ENTER_DEVICE(device);
  out[0] = number_of(device->gpu, "util", 0);
  out[1] = out[0] / 2;
  return OK;
}
PUBLIC ret nvmlDeviceGetTemperature(dev device, u32 sensor, u32 *out) {
  ENTER_DEVICE(device);
  if (sensor) return INVALID;
  *out = number_of(device->gpu, "temp", 31);
  return OK;
}
PUBLIC ret nvmlDeviceGetEccMode(dev device, u32 *now, u32 *pending) {
  ENTER_DEVICE(device);
  long mode = number_of(device->gpu, "ecc", 1);
  if (mode < 0) return NOT_SUPPORTED;
  *now = *pending = mode;
  return OK;
}
PUBLIC ret nvmlDeviceGetTotalEccErrors(dev device, u32 type, u32 counter, u64 *out) {
  ENTER_DEVICE(device);
  if (number_of(device->gpu, "ecc", 1) <= 0) return NOT_SUPPORTED;
  *out = type == 1 && counter == 0 ? number_of(device->gpu, "ecc_errors", 0) : 0;
  return OK;
}
PUBLIC ret nvmlDeviceGetMemoryAffinity(dev device, u32 words, unsigned long *out, u32 scope) {
  ENTER_DEVICE(device);
  long node = number_of(device->gpu, "numa", 0);
  if (node < 0) return NOT_SUPPORTED;
  if (scope || (u32)node / 64 >= words) return INVALID;
  memset(out, 0, words * sizeof *out);
  out[node / 64] = 1UL << node % 64;
  return OK;
}
PUBLIC ret nvmlDeviceGetP2PStatus(dev device, dev other, u32 index, u32 *out) {
  char text[TEXT], *rest = text;
  ENTER_DEVICE(device);
  if (index != 2) return INVALID; /* NVLINK */
  *out = 5;
  of(device->gpu, "nvlink", text, "");
  for (char *word = strsep(&rest, ","); word; word = strsep(&rest, ","))
    if (*word && atoi(word) == other->gpu) *out = 0;
  return OK;
}
