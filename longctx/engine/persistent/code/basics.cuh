// Words of PTX, what programs tell each other, and the ring of stages in shared memory.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int CONSUMERS = WARPS * 32;  // threads; PRODUCERS more warps
constexpr int TEAMS = 4;               // of consumer warps; a stage is always the same team's
constexpr int MEMBERS = WARPS / TEAMS;
static_assert(STAGES % TEAMS == 0, "a stage must not change its team");
constexpr int D = HEAD_DIM;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr float NONE = -1e30f;         // maximum of no scores: finite, so that differences are

// Clocks at places of a layer, if MARKS of them are asked for (scripts/profile_token.py).
#if MARKS
__device__ i64 marks[PROGRAMS * (LAYERS + 1) * MARKS];
#define MARK(layer, place) \
    if (threadIdx.x == 0) marks[(blockIdx.x * (LAYERS + 1) + (layer)) * MARKS + (place)] = clock64();
#else
#define MARK(layer, place)
#endif

__device__ __forceinline__ u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

// ---- bf16 ----
__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float widen(u16 value) { return __uint_as_float((u32)value << 16); }
__device__ __forceinline__ u32 pack(float first, float second) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(second), "f"(first));
    return r;
}
__device__ __forceinline__ u16 narrow(float value) { return (u16)pack(value, 0.f); }
__device__ __forceinline__ u32 pack_half(float first, float second) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(second), "f"(first));
    return r;
}
__device__ __forceinline__ u16 narrow_half(float value) { return (u16)pack_half(value, 0.f); }
__device__ __forceinline__ float widen_half(u16 value) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(value));
    return r;
}

// ---- of a warp's lanes ----
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1) value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}
// Of four neighbours: those that have the same row of a product.
__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}

// ---- what programs tell each other ----
// Every value travels in one word with a tag that changes with every use of its place, so a reader
// sees by the word itself whether it is the new one: no barrier, no fence, no counter. A place is
// written again only after all its readers have shown, by what they sent since, that they read it.
__device__ __forceinline__ u32 load_u32(const u32* p) {
    u32 r;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
}
__device__ __forceinline__ u64 load_u64(const void* p) {
    u64 r;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(r) : "l"(p) : "memory");
    return r;
}
__device__ __forceinline__ void send_bf16(u32* to, float value, u32 tag) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to),
                 "r"((u32)narrow(value) << 16 | (tag & 0xffff)) : "memory");
}
// COUNT of them, `apart` words apart; all are asked for at once, and again until all are there.
template <int COUNT>
__device__ __forceinline__ void receive_bf16(const u32* from, int apart, u32 tag, float (&values)[COUNT]) {
    u32 words[COUNT], stale;
    do {
#pragma unroll
        for (int i = 0; i < COUNT; i++) words[i] = load_u32(from + i * apart);
        stale = 0;
#pragma unroll
        for (int i = 0; i < COUNT; i++) stale |= words[i] ^ tag;
    } while (stale & 0xffff);
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = high(words[i]);
}
__device__ __forceinline__ void send_f32(u64* to, float value, u32 tag) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to),
                 "l"((u64)__float_as_uint(value) << 32 | tag) : "memory");
}
// COUNT of them, each from its own place; none from null.
template <int COUNT>
__device__ __forceinline__ void receive_f32(const u64* const (&from)[COUNT], u32 tag, float (&values)[COUNT]) {
    u64 words[COUNT];
    bool missing;
    do {
#pragma unroll
        for (int i = 0; i < COUNT; i++) words[i] = from[i] ? load_u64(from[i]) : (u64)tag;
        missing = false;
#pragma unroll
        for (int i = 0; i < COUNT; i++) missing |= (u32)words[i] != tag;
    } while (missing);
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = __uint_as_float((u32)(words[i] >> 32));
}
// Four neighbouring bf16, COUNT times, `apart` words apart; what is not there yet is asked for again.
template <int COUNT>
__device__ __forceinline__ void receive_fours(const u32* from, int apart, int have, u32 tag,
                                              uint4 (&words)[COUNT]) {
    bool missing = true;
    u32 wanted = (1u << have) - 1;
    while (missing) {
        missing = false;
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (wanted >> i & 1)
                asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                             : "l"(from + (i64)i * apart) : "memory");
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (wanted >> i & 1) {
                const uint4 w = words[i];
                if (((w.x ^ tag) | (w.y ^ tag) | (w.z ^ tag) | (w.w ^ tag)) & 0xffff) missing = true;
                else wanted &= ~(1u << i);
            }
    }
}

// ---- shared memory ----
__device__ __forceinline__ u16 load_shared_u16(u32 address) {
    u16 r;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(r) : "r"(address) : "memory");
    return r;
}
__device__ __forceinline__ void store_shared_u16(u32 address, u16 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}
__device__ __forceinline__ uint4 load_shared(u32 address) {
    uint4 r;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(address) : "memory");
    return r;
}
__device__ __forceinline__ uint4 load_transposed(u32 address) {
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(address) : "memory");
    return r;
}

// ---- barriers in shared memory ----
__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival, when all lanes of the warp have come.
__device__ __forceinline__ void warp_arrive(u32 barrier) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(barrier);
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void consumers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

// ---- copies into shared memory ----
__device__ __forceinline__ u64 read_once() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier, u64 policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}
// 16 bytes, of which `bytes` (0 or 16) are read and the rest are zeros
__device__ __forceinline__ void copy_16(u32 to, const void* from, u32 bytes, u64 policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to),
                 "l"(from), "r"(bytes), "l"(policy) : "memory");
}
// What was written by ordinary copies must not be overtaken by bulk ones.
__device__ __forceinline__ void before_bulk() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void copy_8(u32 to, const void* from, u64 policy) {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
                 "l"(policy) : "memory");
}
// One arrival of the warp; the barrier waits for its copies besides.
__device__ __forceinline__ void copies_arrive(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(barrier) : "memory");
    warp_arrive(barrier);
}

// ---- tensor cores: columns of B are the same, or heads ----
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A place in the order in which stages are filled.
struct Turn {
    u32 stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ Turn after(u32 stages) const {
        Turn later;
        later.stage = (stage + stages) % STAGES;
        later.parity = parity ^ ((stage + stages) / STAGES & 1);
        return later;
    }
    // how many stages later the first one of this warp's team comes
    __device__ __forceinline__ int own() const {
        return (threadIdx.x / (32 * MEMBERS) - stage) & (TEAMS - 1);
    }
};
__device__ __forceinline__ int producer() { return (threadIdx.x - CONSUMERS) >> 5; }
// Members of two teams whose warps share a scheduler are different ones: the first has more to do.
__device__ __forceinline__ int member() { return ((threadIdx.x >> 5) + (threadIdx.x >> 7)) % MEMBERS; }

struct Ring {
    u32 data, full, empty;  // shared addresses
    __device__ __forceinline__ u32 at(u32 stage) const { return data + stage * STAGE_BYTES; }
    __device__ __forceinline__ u32 wait_full(const Turn& turn) const {
        barrier_wait(full + 8 * turn.stage, turn.parity);
        return at(turn.stage);
    }
    // by every warp of the stage's team
    __device__ __forceinline__ void give_back(const Turn& turn) const {
        warp_arrive(empty + 8 * turn.stage);
    }
    // Not more than WINDOW stages are under way: a longer queue in front of the memory would not make
    // it faster, and what the programs say to each other would wait behind it.
    __device__ __forceinline__ u32 wait_empty(const Turn& turn) const {
        const bool wrapped = turn.stage < WINDOW;
        const u32 earlier = turn.stage - WINDOW + (wrapped ? STAGES : 0);
        barrier_wait(full + 8 * earlier, turn.parity ^ wrapped);
        barrier_wait(empty + 8 * turn.stage, turn.parity ^ 1);
        return at(turn.stage);
    }
};
