// Python's objects to plain buffers and back. Integers come as a list or tuple, or as a one-dimensional array of
// any integer type; whatever else is refused rather than rounded.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "csrc/cpu/hash.h"
#include "csrc/cpu/plan.h"

namespace py = pybind11;

namespace batch_planner {
namespace {

// Calls take(i, value) for the integers [from, to) of an array, list or tuple. Throws when it is none, or shorter.
class Integers {
 public:
  Integers(py::handle object, const char* name) : object_(py::reinterpret_borrow<py::object>(object)), name_(name) {
    if (PyList_Check(object.ptr()) || PyTuple_Check(object.ptr())) {
      size_ = PySequence_Fast_GET_SIZE(object.ptr());
      return;
    }
    array_ = py::array::ensure(object);
    if (!py::isinstance<py::array>(object) || array_.ndim() != 1) refuse();
    const char kind = array_.dtype().kind();
    if (kind != 'i' && kind != 'u') refuse();
    // No value of another integer type but uint64's upper half is changed by this, and that half is negative then.
    if (!py::isinstance<py::array_t<int32_t>>(array_)) array_ = py::array_t<int64_t, py::array::forcecast>(array_);
    size_ = array_.shape(0);
  }

  int64_t size() const { return size_; }

  template <typename Take>
  void read(int64_t from, int64_t to, Take take) const {
    if (!array_) {
      for (int64_t i = from; i < to; ++i) take(i, number(PySequence_Fast_GET_ITEM(object_.ptr(), i)));
    } else if (array_.itemsize() == 4) {
      for (int64_t i = from; i < to; ++i) take(i, *static_cast<const int32_t*>(array_.data(i)));
    } else {
      for (int64_t i = from; i < to; ++i) take(i, *static_cast<const int64_t*>(array_.data(i)));
    }
  }

  std::vector<int64_t> all() const {
    std::vector<int64_t> values(size_);
    read(0, size_, [&](int64_t i, int64_t value) { values[i] = value; });
    return values;
  }

 private:
  int64_t number(PyObject* item) const {
    if (!PyLong_Check(item) && !PyIndex_Check(item)) refuse();
    const int64_t value = PyLong_AsLongLong(item);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }

  [[noreturn]] void refuse() const {
    throw py::type_error(std::string(name_) + " must be integers: a list, a tuple or a 1-D array of an integer type");
  }

  py::object object_;
  const char* name_;
  py::array array_{py::reinterpret_borrow<py::array>(py::handle())};
  int64_t size_ = 0;
};

template <typename T>
py::array_t<T> buffer(int64_t size) {
  return py::array_t<T>(static_cast<py::ssize_t>(size));
}

[[noreturn]] void refuse(size_t sequence, const std::string& what) {
  throw py::value_error("plan_step: sequence " + std::to_string(sequence) + " " + what);
}

// Copies the first `blocks` entries of a sequence's block table and fills the row with zeros.
void copy_table(const Integers& table, size_t sequence, int64_t blocks, int64_t width, int32_t* row) {
  if (table.size() < blocks) {
    refuse(sequence, "needs " + std::to_string(blocks) + " blocks and its block table has " +
                         std::to_string(table.size()));
  }
  table.read(0, blocks, [&](int64_t i, int64_t block) {
    if (block < 0 || block > std::numeric_limits<int32_t>::max()) {
      refuse(sequence, "has block " + std::to_string(block) + ": expected 0 <= block < 2^31");
    }
    row[i] = static_cast<int32_t>(block);
  });
  std::memset(row + blocks, 0, static_cast<size_t>(width - blocks) * sizeof(int32_t));
}

py::tuple plan_step(py::handle seq_lens, py::handle query_lens, py::sequence block_tables, int64_t block_size,
                    std::optional<int64_t> max_blocks, std::optional<py::sequence> tokens,
                    std::optional<int64_t> token_budget) {
  const Share share =
      share_budget(Integers(seq_lens, "seq_lens").all(), Integers(query_lens, "query_lens").all(), block_size,
                   token_budget.value_or(std::numeric_limits<int64_t>::max()));
  const size_t count = share.chunks.size();
  if (block_tables.size() != count || (tokens && tokens->size() != count)) {
    throw py::value_error("plan_step: block_tables, and tokens where given, need one entry per sequence");
  }
  const int64_t width = max_blocks.value_or(share.widest);
  if (width < share.widest) {
    throw py::value_error("plan_step: a sequence needs " + std::to_string(share.widest) + " blocks, max_blocks is " +
                          std::to_string(width));
  }
  auto token_ids = buffer<int64_t>(tokens ? share.tokens : 0);
  auto positions = buffer<int64_t>(share.tokens);
  auto slots = buffer<int64_t>(share.tokens);
  py::array_t<int32_t> tables({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(width)});
  auto ends = buffer<int32_t>(count);
  auto starts = buffer<int32_t>(count + 1);
  std::vector<int64_t> sampled;
  int64_t row = 0;
  starts.mutable_data()[0] = 0;
  for (size_t i = 0; i < count; ++i) {
    const Chunk& chunk = share.chunks[i];
    int32_t* table = tables.mutable_data() + i * width;
    const py::object blocks = block_tables[i];
    copy_table(Integers(blocks, "block_tables' entries"), i, chunk.blocks, width, table);
    place(chunk, table, block_size, positions.mutable_data() + row, slots.mutable_data() + row);
    bool complete = chunk.end == chunk.length;
    if (tokens) {
      const py::object held = (*tokens)[i];
      const Integers ids(held, "tokens' entries");
      if (ids.size() < chunk.end) {
        refuse(i, "has " + std::to_string(ids.size()) + " tokens and a length of " + std::to_string(chunk.end));
      }
      int64_t* out = token_ids.mutable_data() + row - chunk.start;
      ids.read(chunk.start, chunk.end, [&](int64_t position, int64_t id) { out[position] = id; });
      complete = complete && ids.size() == chunk.end;
    }
    row += chunk.end - chunk.start;
    if (complete && chunk.end > chunk.start) sampled.push_back(row - 1);
    ends.mutable_data()[i] = static_cast<int32_t>(chunk.end);
    starts.mutable_data()[i + 1] = static_cast<int32_t>(row);
  }
  auto sample_rows = buffer<int64_t>(sampled.size());
  std::copy(sampled.begin(), sampled.end(), sample_rows.mutable_data());
  return py::make_tuple(tokens ? py::object(token_ids) : py::none(), positions, slots, tables, ends, starts,
                        sample_rows);
}

Hash words(const py::bytes& text, const char* name) {
  const std::string_view bytes = text;
  Hash hash;
  if (bytes.size() != sizeof(hash)) throw py::value_error(std::string(name) + " must have 16 bytes");
  std::memcpy(hash.data(), bytes.data(), sizeof(hash));
  return hash;
}

py::list hash_blocks(py::handle token_ids, int64_t block_size, const py::bytes& key, const py::bytes& parent) {
  if (block_size < 1) throw py::value_error("hash_blocks: block_size must be at least 1");
  const std::vector<int64_t> tokens = Integers(token_ids, "token_ids").all();
  const Hash secret = words(key, "seed");
  Hash hash = words(parent, "parent");
  const int64_t count = static_cast<int64_t>(tokens.size()) / block_size;
  py::list hashes(count);
  for (int64_t i = 0; i < count; ++i) {
    hash = hash_block(secret, hash, tokens.data() + i * block_size, block_size);
    hashes[i] = py::bytes(reinterpret_cast<const char*>(hash.data()), sizeof(hash));
  }
  return hashes;
}

}  // namespace
}  // namespace batch_planner

PYBIND11_MODULE(EXTENSION_NAME, module) {
  module.def("plan_step", &batch_planner::plan_step);
  module.def("hash_blocks", &batch_planner::hash_blocks);
}
