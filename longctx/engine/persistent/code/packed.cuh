// 4-bit weights: NVFP4, two values a byte, an e4m3 scale for every 16.
//
// A stage holds SLICE columns of two tiles and is one team's; the number of slices is a multiple of the
// number of teams, so every team has the same part of all tiles to do. A value becomes fp16 by moving
// its bits, which makes it 2^-14 of what it means (conversions would be slower than the memory). Every
// lane's 16 columns of a group are multiplied for themselves: column n of B is zero but for the columns
// of lane n / 2, so column 2c of the product is the sum of lane c's group, and takes its scale.
//
// A tall tile has 16 rows (8 pairs of gate and up). Where a program has so few rows that such tiles
// would be half empty they are LOW: 8 rows, whose second 128 columns take the place of the other 8
// rows; they meet columns 2c + 1 of B.

constexpr float X_DOWN = 0.0625f;           // vectors become fp16: what is larger than 65,504 must fit
constexpr float REST = 16384.f / X_DOWN;

__device__ __forceinline__ u16 to_half(float value) {
    return narrow_half(fminf(fmaxf(value * X_DOWN, -65504.f), 65504.f));
}
// Two e4m3 as fp16.
__device__ __forceinline__ u32 scales_of(u16 codes) {
    u32 r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(codes));
    return r;
}
// Four values, a byte each with the code in bits 1 to 4, become bytes of s000eem0: the upper half of
// an fp16.
__device__ __forceinline__ u32 spread(u32 codes) {
    return (codes & 0x10101010u) * 8 + (codes & 0x0e0e0e0eu);
}
__device__ __forceinline__ u32 lower_bytes(u32 v) { return __byte_perm(v, 0, 0x2404); }  // 0 and 2
__device__ __forceinline__ u32 upper_bytes(u32 v) { return v & 0xff00ff00u; }            // 1 and 3
// Eight columns of two rows; the two products do not wait for each other.
__device__ __forceinline__ void multiply_word(float (&even)[4], float (&odd)[4], u32 upper, u32 lower,
                                              const uint4& x) {
    u32 a = spread(upper << 1), b = spread(lower << 1);
    multiply_half(even, lower_bytes(a), lower_bytes(b), upper_bytes(a), upper_bytes(b), x.x, x.y);
    a = spread(upper >> 3), b = spread(lower >> 3);
    multiply_half(odd, lower_bytes(a), lower_bytes(b), upper_bytes(a), upper_bytes(b), x.z, x.w);
}

template <class M>
struct Packed {
    static constexpr bool LOW = M::TILE == 8 && !M::PAIRS;
    static constexpr int TILES = 2;                         // of a stage
    static constexpr int STEP = LOW ? 256 : 128;            // columns
    static constexpr int SLOTS = LOW ? 8 : 16;              // rows of a tile, there or not
    static constexpr int SLICES = (M::SLICES + TEAMS - 1) / TEAMS * TEAMS;  // the last may be empty
    // where a stage has a row: neighbours are half of all banks apart; and its scales
    static constexpr int ROW = M::SLICE / 2, GAP = ROW % 128 ? 0 : 64;
    static constexpr int SCALE_ROW = M::SLICE / 16 + (M::SLICE / 16 % 64 ? 0 : 16);
    static __device__ __forceinline__ u32 offset(int slot) { return slot * ROW + GAP * ((slot + 1) >> 1); }
    static constexpr int TILE_BYTES = SLOTS * ROW + SLOTS / 2 * GAP, TILE_SCALES = SLOTS * SCALE_ROW;
    static constexpr int SCALES = TILES * TILE_BYTES;
    static_assert(M::SLICE % STEP == 0 && M::K % STEP == 0, "a slice is not in steps");
    static_assert(SCALES + TILES * TILE_SCALES <= STAGE_BYTES, "a stage is too small");

    // One stage by copies of 16 bytes (of scales 8): tiles at `tile` and `tile + height`.
    static __device__ __forceinline__ void copy(u32 stage, const Weights& w, int tile, int end, int height,
                                                int k, u64 policy) {
        constexpr int EACH = 32 * PRODUCERS / (TILES * SLOTS);  // threads for a row
        const int thread = threadIdx.x - CONSUMERS, at = thread % EACH, of_all = thread / EACH;
        const int of = of_all / SLOTS, slot = of_all % SLOTS;
        const int first = tile + of * height, part = M::PAIRS ? slot & 7 : slot;
        if (part >= min(height, end - first)) return;
        const int columns = min(M::SLICE, M::K - k);
        const i64 row = first + part + (M::PAIRS && slot >= 8 ? M::ROWS : 0);
        const u8* from = w.values + row * (M::K / 2) + k / 2 + 16 * at;
        const u32 to = stage + of * TILE_BYTES + offset(slot) + 16 * at;
#pragma unroll
        for (int i = 0; i < (ROW / 16 + EACH - 1) / EACH; i++)
            if (32 * (i * EACH + at) < columns) copy_16(to + 16 * i * EACH, from + 16 * i * EACH, 16, policy);
        const u8* scale = w.scales + row * (M::K / 16) + k / 16 + 8 * at;
        const u32 scale_to = stage + SCALES + of_all * SCALE_ROW + 8 * at;
#pragma unroll
        for (int i = 0; i < (M::SLICE / 128 + EACH - 1) / EACH; i++)
            if (128 * (i * EACH + at) < columns) copy_8(scale_to + 8 * i * EACH, scale + 8 * i * EACH, policy);
    }

    static __device__ __forceinline__ void stream(const Ring& ring, Turn& turn, const Weights& w, int batch,
                                                  int end, int height, u64 policy) {
        for (int i = 0; i < BATCH; i += TILES) {
            const int tile = batch + i * height;
            if (tile >= end) break;
            for (int j = 0; j < SLICES; j++, turn.next()) {
                const u32 stage = ring.wait_empty(turn);
                const u32 full = ring.full + 8 * turn.stage;
                copy(stage, w, tile, end, height, j * M::SLICE, policy);
                copies_arrive(full);
            }
        }
    }

    // Adds a step of a tile to sum[0] for row g, to sum[1] for row g + 8 (or the second half of the
    // columns). Rows that a tile does not have are whatever lies there, and nobody wants their sums.
    struct Part {
        uint4 upper, lower;
        u16 upper_scales, lower_scales;
        __device__ __forceinline__ Part(u32 values, u32 codes) {
            upper = load_shared(values);
            lower = load_shared(values + (LOW ? 64 : TILE_BYTES / 2));
            upper_scales = load_shared_u16(codes);
            lower_scales = load_shared_u16(codes + (LOW ? 8 : TILE_SCALES / 2));
        }
        __device__ __forceinline__ void multiply(const uint4 (&x)[4], float (&sum)[2]) const {
            constexpr int LOWER = LOW ? 3 : 2;
            float group[2][2][4] = {};  // of columns, even or odd
            multiply_word(group[0][0], group[0][1], upper.x, lower.x, x[0]);
            multiply_word(group[1][0], group[1][1], upper.z, lower.z, x[2]);
            multiply_word(group[0][0], group[0][1], upper.y, lower.y, x[1]);
            multiply_word(group[1][0], group[1][1], upper.w, lower.w, x[3]);
            const u32 up = scales_of(upper_scales), down = scales_of(lower_scales);
            sum[0] += (group[0][0][0] + group[0][1][0]) * widen_half((u16)up) +
                      (group[1][0][0] + group[1][1][0]) * widen_half((u16)(up >> 16));
            sum[1] += (group[0][0][LOWER] + group[0][1][LOWER]) * widen_half((u16)down) +
                      (group[1][0][LOWER] + group[1][1][LOWER]) * widen_half((u16)(down >> 16));
        }
    };

    // One slice of COUNT tiles.
    template <int COUNT>
    static __device__ __forceinline__ void multiply_slice(u32 stage, u32 x, u32 zeros, int columns,
                                                          float (&sum)[TILES][2]) {
        const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
        const u32 values = stage + offset(g) + 16 * c, codes = stage + SCALES + g * SCALE_ROW + 2 * c;
        const bool own = g >> 1 == c && (LOW || !(g & 1));
        const u32 v = own ? x + 64 * c + 256 * (g & 1) : zeros, next = own ? 2 * STEP : 0;
#pragma unroll 1
        for (int step = member(); step < columns / STEP; step += MEMBERS) {
            uint4 xs[4];
#pragma unroll
            for (int i = 0; i < 4; i++) xs[i] = load_shared(v + next * step + 16 * i);
            const Part first(values + STEP / 2 * step, codes + STEP / 16 * step);
            if (COUNT == 2) {
                const Part second(values + STEP / 2 * step + TILE_BYTES, codes + STEP / 16 * step + TILE_SCALES);
                first.multiply(xs, sum[0]);
                second.multiply(xs, sum[1]);
            } else {
                first.multiply(xs, sum[0]);
            }
        }
    }

    // This warp's part of a batch of tiles.
    static __device__ __forceinline__ void sum_batch(const Ring& ring, Turn& turn, u32 x, u32 zeros, int batch,
                                                     int end, int height, Sums& sums) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
#pragma unroll
        for (int i = 0; i < BATCH; i += TILES) {
            const int tile = batch + i * height;
            if (tile >= end) break;
            float sum[TILES][2] = {};
            for (int j = turn.own(); j < SLICES; j += TEAMS) {
                const Turn now = turn.after(j);
                const int k = j * M::SLICE, columns = min(M::SLICE, M::K - k);
                const u32 stage = ring.wait_full(now);
                if (tile + height < end) multiply_slice<2>(stage, x + 2 * k, zeros, columns, sum);
                else multiply_slice<1>(stage, x + 2 * k, zeros, columns, sum);
                ring.give_back(now);
            }
            turn = turn.after(SLICES);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                if (LOW) sum[t][0] += sum[t][1];
#pragma unroll
                for (int offset = 1; offset <= 2; offset *= 2)
#pragma unroll
                    for (int h = 0; h < (LOW ? 1 : 2); h++) sum[t][h] += __shfl_xor_sync(~0u, sum[t][h], offset);
                if ((lane & 3) == 0) {
                    sums[i + t][warp][g] = sum[t][0];
                    if (!LOW) sums[i + t][warp][8 + g] = sum[t][1];
                }
            }
        }
    }
};
