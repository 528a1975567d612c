// Python's objects to plain buffers and back. Integers come as a list or tuple, or as a one-dimensional array of
// an integer type that int64 holds; whatever else is refused rather than rounded.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/cpu/hash.h"
#include "csrc/cpu/plan.h"

namespace py = pybind11;

namespace batch_planner {
namespace {

int64_t integer(PyObject* object, const char* name) {
  py::object kept;  // an __index__ is the caller's code and may drop the object
  if (!PyLong_Check(object)) {
    if (!PyIndex_Check(object)) throw py::type_error(std::string(name) + ": expected an integer");
    kept = py::reinterpret_borrow<py::object>(object);
  }
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

py::sequence sequence(const py::object& object, const char* name) {
  if (!PySequence_Check(object.ptr())) throw py::type_error(std::string(name) + ": expected a sequence");
  return py::reinterpret_borrow<py::sequence>(object);
}

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
    if (kind != 'i' && (kind != 'u' || array_.itemsize() == 8)) refuse();
    if (!py::isinstance<py::array_t<int32_t>>(array_)) array_ = py::array_t<int64_t, py::array::forcecast>(array_);
    size_ = array_.shape(0);
  }

  int64_t size() const { return size_; }

  template <typename Take>
  void read(int64_t from, int64_t to, Take take) const {
    if (!array_) {
      for (int64_t i = from; i < to; ++i) {
        // An item's __index__ may have shortened the list.
        if (i >= PySequence_Fast_GET_SIZE(object_.ptr())) throw py::index_error(std::string(name_) + " got shorter");
        take(i, integer(PySequence_Fast_GET_ITEM(object_.ptr(), i), name_));
      }
    } else if (array_.itemsize() == 4) {
      for (int64_t i = from; i < to; ++i) take(i, load<int32_t>(i));
    } else {
      for (int64_t i = from; i < to; ++i) take(i, load<int64_t>(i));
    }
  }

  std::vector<int64_t> all() const {
    std::vector<int64_t> values(size_);
    read(0, size_, [&](int64_t i, int64_t value) { values[i] = value; });
    return values;
  }

 private:
  template <typename T>
  T load(int64_t i) const {
    T value;
    std::memcpy(&value, array_.data(i), sizeof(T));  // a view's elements may be unaligned
    return value;
  }

  [[noreturn]] void refuse() const {
    throw py::type_error(std::string(name_) + ": expected integers in a list, a tuple or a 1-D array (no uint64)");
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

py::tuple plan_step(const py::object& seq_lens, const py::object& query_lens, const py::object& block_tables,
                    const py::object& block_tokens, const py::object& max_blocks, const py::object& tokens,
                    const py::object& token_budget) {
  const int64_t block_size = integer(block_tokens.ptr(), "block_size");
  const Share share = share_budget(
      Integers(seq_lens, "seq_lens").all(), Integers(query_lens, "query_lens").all(), block_size,
      token_budget.is_none() ? std::numeric_limits<int64_t>::max() : integer(token_budget.ptr(), "token_budget"));
  const size_t count = share.chunks.size();
  const py::sequence block_lists = sequence(block_tables, "block_tables");
  const bool gather = !tokens.is_none();
  const py::sequence token_lists = gather ? sequence(tokens, "tokens") : py::sequence(py::tuple());
  if (block_lists.size() != count || (gather && token_lists.size() != count)) {
    throw py::value_error("plan_step: block_tables, and tokens where given, need one entry per sequence");
  }
  const int64_t width = max_blocks.is_none() ? share.widest : integer(max_blocks.ptr(), "max_blocks");
  if (width < share.widest) {
    throw py::value_error("plan_step: a sequence needs " + std::to_string(share.widest) + " blocks, max_blocks is " +
                          std::to_string(width));
  }
  auto token_ids = buffer<int64_t>(gather ? share.tokens : 0);
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
    const py::object blocks = block_lists[i];
    copy_table(Integers(blocks, "block_tables' entries"), i, chunk.blocks, width, table);
    place(chunk, table, block_size, positions.mutable_data() + row, slots.mutable_data() + row);
    bool complete = chunk.end == chunk.length;
    if (gather) {
      const py::object held = token_lists[i];
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
  return py::make_tuple(gather ? py::object(token_ids) : py::none(), positions, slots, tables, ends, starts,
                        sample_rows);
}

Hash words(const py::bytes& text, const char* name) {
  const std::string_view bytes = text;
  Hash hash;
  if (bytes.size() != sizeof(hash)) throw py::value_error(std::string(name) + " must have 16 bytes");
  std::memcpy(hash.data(), bytes.data(), sizeof(hash));
  return hash;
}

py::list hash_blocks(const py::object& token_ids, const py::object& block_tokens, const py::bytes& key,
                     const py::bytes& parent) {
  const int64_t block_size = integer(block_tokens.ptr(), "block_size");
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
