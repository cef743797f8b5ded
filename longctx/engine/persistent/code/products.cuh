// Matrix times vector: rows of weights stream through the ring, tensor cores multiply them.
//
// A program owns neighbouring rows. A tile is up to 16 of them (gate and up: 8 pairs), a stage holds
// SLICE columns of a tile and is one team's. In a step every lane holds 8 columns (32 of 4-bit
// weights) of two rows; which column is which k of the tensor core's product does not matter as long
// as weights and vector agree, so both are read as they lie. With bf16 weights all 8 columns of the
// product are the same.

template <int K_, int ROWS_, int TILE_, int SLICE_, bool PAIRS_, int FORMAT_>
struct Matrix {
    static constexpr int K = K_, ROWS = ROWS_, TILE = TILE_, SLICE = SLICE_, FORMAT = FORMAT_;
    static constexpr bool PAIRS = PAIRS_;
    static constexpr bool BULK = FORMAT == 0;  // rows long enough for bulk copies
    static constexpr int ROW_BYTES = FORMAT == 1 ? K / 2 : 2 * K;
    static constexpr int SCALE_BYTES = FORMAT == 1 ? K / 16 : 0;      // of a row
    static constexpr int SLICES = (K + SLICE - 1) / SLICE;
    static constexpr int SLICE_BYTES = FORMAT == 1 ? SLICE / 2 : 2 * SLICE;  // of a row
    static constexpr int SCALES = 16 * SLICE_BYTES + 512;             // where a stage has its scales
    static constexpr int SCALE_STRIDE = FORMAT == 1 ? SLICE / 16 : 0;
    static_assert(FORMAT == 0 || SLICE / 16 <= 128, "eight threads copy the scales of a row");
    static constexpr int STEP = FORMAT == 1 ? 128 : 32;               // columns
    // where a stage has a row: neighbours are half of all banks apart
    static __device__ __forceinline__ u32 offset(int row) {
        return row * SLICE_BYTES + 64 * ((row + 1) >> 1);
    }
    static __device__ __forceinline__ int first(int program) {
        return (int)((i64)ROWS * program / PROGRAMS);
    }
    // rows (pairs) of a tile of this program; all tiles but the last are of this height
    static __device__ __forceinline__ int height(int rows) {
        int tiles = (rows + TILE - 1) / TILE;
        return tiles ? (rows + tiles - 1) / tiles : 1;
    }
};

struct Weights {
    const u8* values;
    const u8* scales;     // e4m3, one for 16 columns
    const float* whole;   // one for a row
};

constexpr int BATCH = 4;  // tiles whose sums are added together
typedef float Sums[BATCH][WARPS][16];

struct Layer {
    Weights qkv, o, gate_up, down;
    const u16 *input_norm, *post_norm, *query_norm, *key_norm;  // the latter two may be null
    const u16 *qkv_bias, *o_bias;                               // may be null
    const u8 *keys, *values, *key_scales, *value_scales;        // [KV_HEADS, capacity, D], [KV_HEADS, capacity]
};
__constant__ Layer layers[LAYERS];

// One stage by bulk copies: a lane of each producer warp takes every PRODUCERS-th row.
template <class M>
__device__ __forceinline__ void copy_rows(u32 stage, u32 full, const Weights& w, int tile, int rows, int k,
                                          u64 policy) {
    if (threadIdx.x & 31) return;
    const u32 bytes = 2 * min(M::SLICE, M::K - k);
    const int copies = ((M::PAIRS ? 2 : 1) * rows + PRODUCERS - 1 - producer()) / PRODUCERS;
    barrier_expect(full, copies * bytes);
#pragma unroll
    for (int i = 0; i < 16 / PRODUCERS; i++) {
        const int part = producer() + i * PRODUCERS;  // of the rows, gates before ups
        if (i >= copies) break;
        const bool up = M::PAIRS && part >= rows;
        const i64 row = up ? tile + part - rows + M::ROWS : tile + part;
        copy_bulk(stage + M::offset(up ? part - rows + 8 : part), w.values + row * M::ROW_BYTES + 2 * k,
                  bytes, full, policy);
    }
}

// One stage of short rows by copies of 16 bytes: eight producer threads take a row.
template <class M>
__device__ __forceinline__ void copy_chunks(u32 stage, u32 full, const Weights& w, int tile, int rows, int k,
                                            u64 policy) {
    static_assert(PRODUCERS == 4, "eight threads for each of 16 rows");
    const int thread = threadIdx.x - CONSUMERS, slot = thread >> 3, at = thread & 7;
    const int part = M::PAIRS ? slot & 7 : slot;
    if (part < rows) {
        const int columns = min(M::SLICE, M::K - k);
        const i64 row = tile + part + (M::PAIRS && slot >= 8 ? M::ROWS : 0);
        const u8* from = w.values + row * M::ROW_BYTES + k / 2 + 16 * at;
        const u32 to = stage + M::offset(slot) + 16 * at;
#pragma unroll
        for (int i = 0; i < (M::SLICE_BYTES + 127) / 128; i++)
            if (128 * i + 16 * at < columns / 2) copy_16(to + 128 * i, from + 128 * i, 16, policy);
        if (16 * at < columns / 16)
            copy_16(stage + M::SCALES + slot * M::SCALE_STRIDE + 16 * at,
                    w.scales + row * M::SCALE_BYTES + k / 16 + 16 * at, 16, policy);
    }
    copies_arrive(full);
    __syncwarp();
    if ((thread & 31) == 0) barrier_arrive(full);
}

template <class M>
__device__ __forceinline__ void stream(const Ring& ring, Turn& turn, const Weights w, u64 policy) {
    const int begin = M::first(blockIdx.x), end = M::first(blockIdx.x + 1);
    const int height = M::height(end - begin);
    for (int tile = begin; tile < end; tile += height) {
        const int rows = min(height, end - tile);
        for (int k = 0; k < M::K; k += M::SLICE, turn.next()) {
            const u32 stage = ring.wait_empty(turn);
            __syncwarp();
            const u32 full = ring.full + 8 * turn.stage;
            if (M::BULK) copy_rows<M>(stage, full, w, tile, rows, k, policy);
            else copy_chunks<M>(stage, full, w, tile, rows, k, policy);
        }
    }
}

// ---- 4-bit weights ----
// A value becomes fp16 by moving its bits, which makes it 2^-14 of what it means (conversions would be
// slower than the memory). Every lane's 16 columns of a group are multiplied for themselves: column n
// of B is zero but for the columns of lane n / 2, so column 2c of the product is the sum of lane c's
// group, and takes its scale.
constexpr float X_DOWN = 0.0625f;           // vectors become fp16: what is larger than 65,504 must fit
constexpr float REST = 16384.f / X_DOWN;

__device__ __forceinline__ u16 to_half(float value) {
    return (u16)pack_half(fminf(fmaxf(value * X_DOWN, -65504.f), 65504.f), 0.f);
}
// Two e4m3 as fp16.
__device__ __forceinline__ u32 scales_of(u16 codes) {
    u32 r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(codes));
    return r;
}
// Four values, a byte each with the code in bits 1 to 4, become bytes of s000eem0: the upper half of
// an fp16. The product puts the sign in its place and does not take turns with the logical operations.
__device__ __forceinline__ u32 spread(u32 codes) {
    return (codes & 0x10101010u) * 8 + (codes & 0x0e0e0e0eu);
}
__device__ __forceinline__ u32 lower_bytes(u32 v) { return __byte_perm(v, 0, 0x2404); }  // 0 and 2
__device__ __forceinline__ u32 upper_bytes(u32 v) { return v & 0xff00ff00u; }            // 1 and 3
__device__ __forceinline__ void multiply_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Eight columns of two rows: even columns, then odd ones.
__device__ __forceinline__ void multiply_word(float (&sum)[4], u32 upper, u32 lower, const uint4& x) {
    u32 a = spread(upper << 1), b = spread(lower << 1);
    multiply_half(sum, lower_bytes(a), lower_bytes(b), upper_bytes(a), upper_bytes(b), x.x, x.y);
    a = spread(upper >> 3), b = spread(lower >> 3);
    multiply_half(sum, lower_bytes(a), lower_bytes(b), upper_bytes(a), upper_bytes(b), x.z, x.w);
}

// One slice of a tile. bf16: adds to even[] and odd[], element 0 for row g, element 2 for row g + 8.
// 4-bit: the same of even[], this lane's part.
template <class M>
__device__ __forceinline__ void multiply_slice(u32 stage, u32 x, u32 zeros, int columns, int rows,
                                               float (&even)[4], float (&odd)[4]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
    const int steps = columns / M::STEP;
    // rows that a low tile does not have are read from row 0, and nobody wants their sums
    const int first = g < rows ? g : 0;
    const int second = M::PAIRS ? first + 8 : g + 8 < rows ? g + 8 : 0;
    const u32 upper = stage + M::offset(first) + 16 * c, lower = stage + M::offset(second) + 16 * c;
    if (M::FORMAT == 1) {
        const u32 scales = stage + M::SCALES + 2 * c;
        const bool own = g >> 1 == c && !(g & 1);
        const u32 v = own ? x + 64 * c : zeros, next = own ? 256 : 0;
#pragma unroll 2
        for (int step = member(); step < steps; step += MEMBERS) {
            const uint4 a = load_shared(upper + 64 * step), b = load_shared(lower + 64 * step);
            u16 code_a, code_b;
            asm volatile("ld.shared.u16 %0, [%1];"
                         : "=h"(code_a) : "r"(scales + first * M::SCALE_STRIDE + 8 * step) : "memory");
            asm volatile("ld.shared.u16 %0, [%1];"
                         : "=h"(code_b) : "r"(scales + second * M::SCALE_STRIDE + 8 * step) : "memory");
            const u32 at = v + next * step;
            float one[4] = {0.f, 0.f, 0.f, 0.f}, two[4] = {0.f, 0.f, 0.f, 0.f};
            multiply_word(one, a.x, b.x, load_shared(at));
            multiply_word(two, a.z, b.z, load_shared(at + 32));
            multiply_word(one, a.y, b.y, load_shared(at + 16));
            multiply_word(two, a.w, b.w, load_shared(at + 48));
            const u32 scale_a = scales_of(code_a), scale_b = scales_of(code_b);
            even[0] += one[0] * widen_half((u16)scale_a) + two[0] * widen_half((u16)(scale_a >> 16));
            even[2] += one[2] * widen_half((u16)scale_b) + two[2] * widen_half((u16)(scale_b >> 16));
        }
    } else {
        const u32 v = x + 16 * c;
#pragma unroll 4
        for (int step = member(); step < steps; step += MEMBERS) {
            const uint4 a = load_shared(upper + 64 * step), b = load_shared(lower + 64 * step);
            const uint4 xs = load_shared(v + 64 * step);
            multiply(even, a.x, b.x, a.y, b.y, xs.x, xs.y);
            multiply(odd, a.z, b.z, a.w, b.w, xs.z, xs.w);
        }
    }
}

// Consumes what `stream` produces. before(row) is called by the thread that will call
// finish(row, sum, sum of the paired row, what before gave), ahead of the weights.
template <class M, class Before, class Finish>
__device__ __forceinline__ void product(const Ring& ring, Turn& turn, const Weights w, u32 x,
                                        u32 zeros, Sums* sums, Before before, Finish finish) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    constexpr int PER_TILE = M::PAIRS ? 8 : 16;
    const int begin = M::first(blockIdx.x), end = M::first(blockIdx.x + 1);
    const int height = M::height(end - begin);
    int buffer = 0;
    for (int batch = begin; batch < end; batch += BATCH * height, buffer ^= 1) {
        // this thread's row of the batch
        const int tile_of = threadIdx.x / PER_TILE, at = threadIdx.x % PER_TILE;
        const int row = batch + tile_of * height + at;
        const bool mine = tile_of < BATCH && at < height && row < end;
        float carried = 0.f, factor = 1.f, other_factor = 1.f;
        if (mine) {
            carried = before(row);
            if (M::FORMAT == 1) {
                factor = w.whole[row];
                if (M::PAIRS) other_factor = w.whole[row + M::ROWS];
            }
        }
        for (int i = 0; i < BATCH; i++) {
            const int tile = batch + i * height;
            if (tile >= end) break;
            const int rows = min(height, end - tile);
            float even[4] = {0.f, 0.f, 0.f, 0.f}, odd[4] = {0.f, 0.f, 0.f, 0.f};
            for (int j = turn.own(); j < M::SLICES; j += TEAMS) {
                const Turn now = turn.after(j);
                const int k = j * M::SLICE;
                const u32 stage = ring.wait_full(now);
                multiply_slice<M>(stage, x + 2 * k, zeros, min(M::SLICE, M::K - k), rows, even, odd);
                ring.give_back(now);
            }
            turn = turn.after(M::SLICES);
            if (M::FORMAT == 1) {
#pragma unroll
                for (int offset = 1; offset <= 2; offset *= 2) {
                    even[0] += __shfl_xor_sync(~0u, even[0], offset);
                    even[2] += __shfl_xor_sync(~0u, even[2], offset);
                }
            }
            if ((lane & 3) == 0) {
                sums[buffer][i][warp][lane >> 2] = even[0] + odd[0];
                sums[buffer][i][warp][8 + (lane >> 2)] = even[2] + odd[2];
            }
        }
        consumers_sync();
        if (mine) {
            float sum = 0.f, other = 0.f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                sum += sums[buffer][tile_of][i][at];
                if (M::PAIRS) other += sums[buffer][tile_of][i][8 + at];
            }
            if (M::FORMAT == 1) {
                sum = DIVIDE ? sum * REST / factor : sum * REST * factor;
                other = DIVIDE ? other * REST / other_factor : other * REST * other_factor;
            }
            finish(row, sum, other, carried);
        }
    }
}
