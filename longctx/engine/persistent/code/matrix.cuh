// Matrix times vector: how the rows of a matrix are cut. Weights stream through the ring, tensor cores
// multiply them (dense.cuh, packed.cuh), products.cuh adds up and hands on.
//
// A program owns neighbouring rows. A tile is TILE of them (gate and up: 8 pairs); tiles but the last
// are of the same height, as few as possible; BATCH tiles are summed together.

template <int K_, int ROWS_, int TILE_, int SLICE_, bool PAIRS_, int FORMAT_>
struct Matrix {
    static constexpr int K = K_, ROWS = ROWS_, TILE = TILE_, SLICE = SLICE_, FORMAT = FORMAT_;
    static constexpr bool PAIRS = PAIRS_;
    static constexpr int SLICES = (K + SLICE - 1) / SLICE;  // of columns, each in a stage of its own
    static __device__ __forceinline__ int first(int program) {
        return (int)((i64)ROWS * program / PROGRAMS);
    }
    // rows (pairs) of a tile
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

constexpr int BATCH = 4;
typedef float Sums[BATCH][WARPS][16];

struct Layer {
    Weights qkv, o, gate_up, down;
    const u16 *input_norm, *post_norm, *query_norm, *key_norm;  // the latter two may be null
    const u16 *qkv_bias, *o_bias;                               // may be null
    const u8 *keys, *values, *key_scales, *value_scales;        // [KV_HEADS, capacity, D], [KV_HEADS, capacity]
};
__constant__ Layer layers[LAYERS];
