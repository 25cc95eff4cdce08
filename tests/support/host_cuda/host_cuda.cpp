// Runs launches of clamp_combine.cu on the CPU; see host_cuda.h. Compiled with
// -DSIGCAM_SOURCE="path" and, for fibers, -DSIGCAM_FIBERS.
//
// As a library: `run`. As a program: reads a case from the file that is its argument (see
// __init__.py) and writes the buffers back to it.

// The checked longjmp takes a jump to another stack for an error.
#undef _FORTIFY_SOURCE

#include "host_cuda.h"

#include SIGCAM_SOURCE

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int LANES = 32;

// The arguments of the kernels `flat_*`, which take them one by one.
struct FlatArguments {
    const float* cams;
    int rows, columns, height, width, strip;
    void* heatmaps;
};

enum class Kind { Combine, Heatmap, Prepare, Flat };

Kind kind_of(const std::string& kernel) {
    const auto begins = [&](const char* with) { return kernel.rfind(with, 0) == 0; };
    if (begins("combine")) return Kind::Combine;
    if (begins("prepare")) return Kind::Prepare;
    return begins("flat") ? Kind::Flat : Kind::Heatmap;
}

[[maybe_unused]] size_t size_of(Kind kind) {
    switch (kind) {
        case Kind::Combine: return sizeof(CombineArguments);
        case Kind::Prepare: return sizeof(PrepareArguments);
        case Kind::Flat: return sizeof(FlatArguments);
        default: return sizeof(HeatmapArguments);
    }
}

struct Launch {
    void* function;
    Kind kind;
    const void* argument;
    host::Index blocks;
    unsigned threads, shared_bytes;

    void call() const {
        if (kind == Kind::Combine) {
            pass<CombineArguments>();
        } else if (kind == Kind::Prepare) {
            pass<PrepareArguments>();
        } else if (kind == Kind::Heatmap) {
            pass<HeatmapArguments>();
        } else {
            const auto& a = *static_cast<const FlatArguments*>(argument);
            reinterpret_cast<void (*)(const float*, int, int, int, int, int, void*)>(function)(
                a.cams, a.rows, a.columns, a.height, a.width, a.strip, a.heatmaps);
        }
    }

    template <typename T>
    void pass() const {
        reinterpret_cast<void (*)(T)>(function)(*static_cast<const T*>(argument));
    }
};

[[noreturn]] void fail(const char* text) {
    std::fprintf(stderr, "host_cuda: %s\n", text);
    std::abort();
}

}  // namespace

#ifdef SIGCAM_FIBERS

namespace {

constexpr size_t STACK = 64 * 1024;
enum class Stop { Running, Barrier, Exchange, Done };

// Begun once by a context, and from then on switched by jumps: a switch of contexts asks the
// system for the signal mask each time, which took longer than the kernels.
struct Fiber {
    jmp_buf at;
    std::unique_ptr<char[]> stack;
    host::Place place;
    Stop stop;
    unsigned exchanges;
};

struct Block {
    const Launch* launch;
    std::vector<Fiber> fibers;
    std::vector<float> memory;
    std::vector<uint32_t> slots[2];
    jmp_buf scheduler;
    Fiber* running;
};

Block block;

void stop_at(Stop stop) {
    block.running->stop = stop;
    if (!_setjmp(block.running->at)) _longjmp(block.scheduler, 1);
}

[[noreturn]] void body() {
    for (;;) {  // the next block's thread goes on where the last one's ended
        block.launch->call();
        stop_at(Stop::Done);
    }
}

void begin(Fiber& fiber) {
    ucontext_t context;
    getcontext(&context);
    fiber.stack.reset(new char[STACK]);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
    setcontext(&context);
}

void resume(Fiber& fiber) {
    block.running = &fiber;
    if (_setjmp(block.scheduler)) return;
    if (fiber.stack) _longjmp(fiber.at, 1);
    begin(fiber);
}

void run_block(const Launch& launch, host::Index index) {
    block.launch = &launch;
    // What a block finds in shared memory is undefined: not a number.
    block.memory.assign(launch.shared_bytes / 4 + 1, std::nanf(""));
    block.fibers.resize(launch.threads);
    for (auto& slots : block.slots) slots.assign(launch.threads, 0);
    for (unsigned i = 0; i < launch.threads; ++i) {
        Fiber& fiber = block.fibers[i];
        fiber.place = {{i, 0, 0}, index, launch.blocks, launch.threads};
        fiber.stop = Stop::Running;
        fiber.exchanges = 0;
    }
    for (;;) {
        for (Fiber& fiber : block.fibers) {
            if (fiber.stop != Stop::Done) resume(fiber);
        }
        for (const Fiber& fiber : block.fibers)
            if (fiber.stop != block.fibers[0].stop)
                fail("threads of a block wait at different barriers");
        if (block.fibers[0].stop == Stop::Done) return;
    }
}

}  // namespace

namespace host {

const Place& place() { return block.running->place; }
float* shared() { return block.memory.data(); }
void barrier() { stop_at(Stop::Barrier); }
void fence() {}

uint32_t exchange(uint32_t value, int mask) {
    Fiber& fiber = *block.running;
    const unsigned thread = fiber.place.thread.x;
    // Two sets: a thread may be one exchange ahead of those that come after it.
    std::vector<uint32_t>& slots = block.slots[fiber.exchanges++ % 2];
    slots[thread] = value;
    stop_at(Stop::Exchange);
    return slots[thread ^ static_cast<unsigned>(mask)];
}

}  // namespace host

namespace {

void run_blocks(const Launch& launch) {
    for (unsigned z = 0; z < launch.blocks.z; ++z)
        for (unsigned y = 0; y < launch.blocks.y; ++y)
            for (unsigned x = 0; x < launch.blocks.x; ++x) run_block(launch, {x, y, z});
}

}  // namespace

#else  // threads

namespace {

constexpr unsigned AT_A_TIME = 3;  // blocks

// Always two barriers in turn. ThreadSanitizer takes a thread that wakes up late from one for
// later than all that have reached the same one again, and so for later than what they did in
// between: races would go unseen.
struct Barriers {
    pthread_barrier_t two[2];

    explicit Barriers(unsigned count) {
        for (auto& one : two) pthread_barrier_init(&one, nullptr, count);
    }
    Barriers(const Barriers&) = delete;
    void wait(unsigned turn) { pthread_barrier_wait(&two[turn % 2]); }
};

struct Block {
    std::vector<float> memory;
    std::vector<uint32_t> slots;
    Barriers all;
    std::deque<Barriers> warps;

    explicit Block(unsigned threads) : slots(threads), all(threads) {
        for (unsigned i = 0; i < threads / LANES; ++i) warps.emplace_back(LANES);
    }
};

// What the threads of a launch have in common. They are made once for all its blocks, as
// making them takes longer than what they do; all of them wait before and after each round.
struct Team {
    const Launch* launch;
    unsigned rounds, blocks;
    Barriers everyone;
};

struct Thread {
    Team* team;
    Block* block;
    unsigned number;  // of the block in the first round
    host::Place place;
    unsigned barriers;  // that were passed
};

thread_local Thread* current = nullptr;
std::atomic<unsigned> fences{0};

void* body(void* data) {
    Thread& self = *static_cast<Thread*>(data);
    Team& team = *self.team;
    const Launch& launch = *team.launch;
    const host::Index& n = launch.blocks;
    current = &self;
    for (unsigned round = 0; round < team.rounds; ++round) {
        const unsigned i = round * AT_A_TIME + self.number;
        self.place.block = {i % n.x, i / n.x % n.y, i / n.x / n.y};
        if (self.place.thread.x == 0)
            self.block->memory.assign(launch.shared_bytes / 4, std::nanf(""));
        team.everyone.wait(0);
        if (i < team.blocks) launch.call();
        team.everyone.wait(1);
    }
    return nullptr;
}

}  // namespace

namespace host {

const Place& place() { return current->place; }
float* shared() { return current->block->memory.data(); }
void barrier() { current->block->all.wait(current->barriers++); }
// ThreadSanitizer doesn't understand fences; this one orders what it should: all that came
// before it with all that comes after a later one.
void fence() { fences.fetch_add(1, std::memory_order_acq_rel); }

uint32_t exchange(uint32_t value, int mask) {
    const unsigned thread = current->place.thread.x;
    Barriers& warp = current->block->warps[thread / LANES];
    current->block->slots[thread] = value;
    warp.wait(0);
    const uint32_t found = current->block->slots[thread ^ static_cast<unsigned>(mask)];
    warp.wait(1);
    return found;
}

}  // namespace host

namespace {

void run_blocks(const Launch& launch) {
    const unsigned count = launch.blocks.x * launch.blocks.y * launch.blocks.z;
    const unsigned rounds = (count + AT_A_TIME - 1) / AT_A_TIME;
    Team team{&launch, rounds, count, Barriers(AT_A_TIME * launch.threads)};
    std::deque<Block> blocks;
    std::vector<Thread> threads;
    for (unsigned i = 0; i < AT_A_TIME; ++i) {
        Block& block = blocks.emplace_back(launch.threads);
        for (unsigned t = 0; t < launch.threads; ++t)
            threads.push_back(
                {&team, &block, i, {{t, 0, 0}, {}, launch.blocks, launch.threads}, 0});
    }
    std::vector<pthread_t> handles(threads.size());
    for (size_t i = 0; i < threads.size(); ++i)
        if (pthread_create(&handles[i], nullptr, body, &threads[i])) fail("no more threads");
    for (pthread_t handle : handles) pthread_join(handle, nullptr);
}

}  // namespace

#endif

extern "C" void run(const char* kernel, const void* argument, const unsigned* grid,
                    unsigned threads, unsigned shared_bytes) {
#ifdef SIGCAM_FIBERS
    // This library's own, as the tests load several.
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&run), &info);
    static void* const self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
#else
    static void* const self = dlopen(nullptr, RTLD_NOW);
#endif
    void* function = dlsym(self, kernel);
    if (!function) fail("no such kernel");
    const Kind kind = kind_of(kernel);
    run_blocks({function, kind, argument, {grid[0], grid[1], grid[2]}, threads, shared_bytes});
}

// Offsets of the structures' fields, and at the end their sizes; compared with those of
// kernels/arguments.py.
extern "C" const int* layout_combine() {
#define AT(field) static_cast<int>(offsetof(CombineArguments, field))
    static const int found[] = {
        AT(features), AT(weights), AT(partial), AT(cams), AT(bounds), AT(valid), AT(arrived),
        AT(places), AT(channels), AT(positions), AT(classes), AT(tile_classes), AT(group),
        AT(units), AT(tile_units), AT(lanes), AT(chunk_groups), AT(chunks), AT(tiles), AT(clamp),
        AT(keep_sign), AT(bilinear), AT(place),
        static_cast<int>(sizeof(CombineArguments))};
#undef AT
    return found;
}

extern "C" const int* layout_heatmap() {
#define AT(field) static_cast<int>(offsetof(HeatmapArguments, field))
    static const int found[] = {
        AT(cams), AT(bounds), AT(valid), AT(partial), AT(arrived), AT(heatmaps),
        AT(places), AT(classes), AT(strip), AT(aligned), AT(place), static_cast<int>(sizeof(HeatmapArguments))};
#undef AT
    return found;
}

extern "C" const int* layout_axis() {
#define AT(field) static_cast<int>(offsetof(Axis, field))
    static const int found[] = {AT(size), AT(low), AT(high), AT(cells), AT(scale), AT(offset),
                                static_cast<int>(sizeof(Axis))};
#undef AT
    return found;
}

extern "C" const int* layout_input_axis() {
#define AT(field) static_cast<int>(offsetof(InputAxis, field))
    static const int found[] = {AT(start), AT(factor), AT(cells), AT(first), AT(shown), AT(length),
                                static_cast<int>(sizeof(InputAxis))};
#undef AT
    return found;
}

extern "C" const int* layout_prepare() {
#define AT(field) static_cast<int>(offsetof(PrepareArguments, field))
    static const int found[] = {
        AT(images), AT(inputs), AT(image), AT(row), AT(column), AT(channel), AT(rows), AT(columns),
        AT(channels), AT(halves_up), AT(share), AT(border), AT(scale), AT(shift),
        static_cast<int>(sizeof(PrepareArguments))};
#undef AT
    return found;
}

extern "C" const int* layout_place() {
#define AT(field) static_cast<int>(offsetof(Place, field))
    static const int found[] = {AT(rows), AT(columns), AT(start), static_cast<int>(sizeof(Place))};
#undef AT
    return found;
}

// ---- the program -----------------------------------------------------------------------

namespace {

template <typename T>
T next(std::FILE* file) {
    T value;
    if (std::fread(&value, sizeof(T), 1, file) != 1) fail("the case file is too short");
    return value;
}

}  // namespace

// All numbers are int64: the buffers (count; size, bytes each), then the launches (count;
// length of the name, name, grid, threads, shared bytes, size of the argument, argument,
// number of pointers, for each its place in the argument, its buffer and the offset there).
int main(int, char** arguments) {
    std::FILE* file = std::fopen(arguments[1], "r+b");
    if (!file) fail("no case file");
    struct Buffer {
        char* data;
        int64_t size;
        long at;
    };
    std::vector<Buffer> buffers(static_cast<size_t>(next<int64_t>(file)));
    for (Buffer& buffer : buffers) {
        buffer.size = next<int64_t>(file);
        buffer.at = std::ftell(file);
        // Each its own allocation of the exact size: AddressSanitizer watches its ends.
        buffer.data = static_cast<char*>(std::malloc(static_cast<size_t>(buffer.size)));
        if (buffer.size && std::fread(buffer.data, static_cast<size_t>(buffer.size), 1, file) != 1)
            fail("the case file is too short");
    }
    const int64_t launches = next<int64_t>(file);
    for (int64_t i = 0; i < launches; ++i) {
        std::string name(static_cast<size_t>(next<int64_t>(file)), ' ');
        if (std::fread(name.data(), name.size(), 1, file) != 1) fail("the case file is too short");
        unsigned grid[3];
        for (unsigned& size : grid) size = static_cast<unsigned>(next<int64_t>(file));
        const auto threads = static_cast<unsigned>(next<int64_t>(file));
        const auto shared = static_cast<unsigned>(next<int64_t>(file));
        std::vector<char> argument(static_cast<size_t>(next<int64_t>(file)));
        if (std::fread(argument.data(), argument.size(), 1, file) != 1) fail("the case file is too short");
        const int64_t pointers = next<int64_t>(file);
        for (int64_t k = 0; k < pointers; ++k) {
            const int64_t at = next<int64_t>(file);
            const int64_t index = next<int64_t>(file);
            char* pointer = buffers[static_cast<size_t>(index)].data + next<int64_t>(file);
            std::memcpy(argument.data() + at, &pointer, sizeof(pointer));
        }
        run(name.c_str(), argument.data(), grid, threads, shared);
    }
    for (const Buffer& buffer : buffers) {
        std::fseek(file, buffer.at, SEEK_SET);
        std::fwrite(buffer.data, 1, static_cast<size_t>(buffer.size), file);
        std::free(buffer.data);
    }
    std::fclose(file);
    return 0;
}
