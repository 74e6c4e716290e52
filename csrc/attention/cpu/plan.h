// A call as its kernels share it: the operands in the form the products read, and the tasks.
#pragma once

#include <cstddef>

#include "attention/attention.h"

namespace fastops::attention::cpu {

// How a tensor is read as the broadcast side of a product, 4 bytes at a time: floats, or pairs of
// bf16 that one instruction multiplies and adds.
enum class Form : int8_t {
  in_place,  // rows of fp32, or of bf16 with as many channels as an instruction takes
  widened,   // rows of fp32 made from 16-bit values
  padded,    // rows of bf16 filled up with zeros
  paired,    // the values of rows 2 i and 2 i + 1 beside each other
  turned,    // 32 rows (or 16 and zeros), channel by channel, zero channels up to a multiple of 32
};

// What multiplies: single floats, pairs of bf16 in a lane, matrix registers of bf16.
enum class Unit : int8_t { single, pair, matrix };

struct Factor {
  const char* data = nullptr;
  int64_t batch = 0, head = 0, step = 0;  // bytes; step: from unit to unit of rows
  int64_t start = 0;                      // where data points to

  const char* of(int64_t b, int64_t h) const { return data + (b * batch + h * head - start); }
};

// Heads [begin, end) of a tensor, counted through the batch, brought into another form.
struct PackJob {
  Form form;
  DType dtype;
  Heads source;
  int64_t heads = 0;  // of a sample
  int64_t begin = 0, end = 0;
  int64_t rows = 0, channels = 0, block = 0;
  const uint8_t* listed = nullptr;  // [end - begin][blocks], not 0: packed; nullptr: all are
  char* to = nullptr;
  int64_t head_bytes = 0, step = 0;

  int64_t blocks() const { return (rows + block - 1) / block; }
};

// Rows of blocks of heads, given out one at a time: heads in order, the rows of a head with the
// longest lists first.
struct Task {
  int32_t head;  // counted through the batch
  int32_t row;
};
class TaskQueue;
struct Worker {  // one of the threads that empty a queue
  TaskQueue& queue;
  int64_t index;
};
bool next_task(const Worker& worker, Task& task);
// What next_task() will give this worker if no other helps it; for fetching ahead.
bool upcoming_task(const Worker& worker, Task& task);

struct ForwardPlan {
  const ForwardParams& p;
  Factor k, v;  // v: for sums over keys
};

// Gradients of queries, a part for each `rows_each` rows of key blocks, fp32 and not yet scaled.
// How many parts there are follows from sizes alone, so that sums have the same order on any
// machine.
struct QueryParts {
  float* data = nullptr;   // [heads from `first_head` on][count][seq_q][channels]
  int64_t first_head = 0;  // of queries, counted through the batch
  int64_t count = 1, rows_each = 1;
  int64_t channels = 0;  // filled up to whole vectors of any instruction set

  float* of(int64_t head, int64_t part, int64_t seq_q) const {
    return data + ((head - first_head) * count + part) * seq_q * channels;
  }
};

struct BackwardPlan {
  const BackwardParams& p;
  Factor k, v, q, grad_out;              // for sums over channels
  Factor k_sums, q_sums, grad_out_sums;  // for sums over rows
  QueryParts parts;                      // where keys add up the gradients of queries, too
};

}  // namespace fastops::attention::cpu
