// Queues, events and captures of the late device; see late_device.h.
#include "model/late_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace quire::test {

struct LateDevice::EventState {
  uint64_t asked = 0, done = 0;  // tickets of records
  uint64_t capture = 0;          // > 0: last recorded in that capture
  int queue = 0;                 // where, and after how much of its captured work
  size_t num_work = 0;
};

namespace {

using Queue = LateDevice::Queue;

Queue& queue_of(Stream stream) {
  QUIRE_CHECK(stream.handle != nullptr, "a launch on no stream");
  return *static_cast<Queue*>(stream.handle);
}

template <auto kKernel, typename Params>
void launch_late(const Params& params, Stream stream) {
  Queue& queue = queue_of(stream);
  LateDevice* device = queue.device;
  device->push(queue, [device, params] { (device->table().*kKernel)(params, device->host_stream()); });
}

void pack_late(const PackWeightParams& p, Stream stream) {
  const LateDevice& device = *queue_of(stream).device;
  const int64_t last = (p.rows - 1) * p.row_stride + (p.cols - 1) * p.col_stride;
  QUIRE_CHECK(device.is_device_memory(p.source, static_cast<size_t>(last + 1) * dtype_bytes(p.source_dtype)),
              "pack_weight was given host memory");
  QUIRE_CHECK(device.is_device_memory(p.weight.data, 1), "pack_weight writes to host memory");
  launch_late<&KernelTable::pack_weight>(p, stream);
}

void unpack_late(const UnpackWeightParams& p, Stream stream) {
  const auto count = static_cast<size_t>(p.rows * p.weight.cols);
  QUIRE_CHECK(queue_of(stream).device->is_device_memory(p.out, count * sizeof(float)),
              "unpack_weight writes to host memory");
  launch_late<&KernelTable::unpack_weight>(p, stream);
}

void fill_late(const FillDummyParams& p, Stream stream) {
  QUIRE_CHECK(queue_of(stream).device->is_device_memory(p.out, static_cast<size_t>(p.count) * sizeof(float)),
              "fill_dummy writes to host memory");
  launch_late<&KernelTable::fill_dummy>(p, stream);
}

class LateEvent final : public Event {
 public:
  LateEvent(LateDevice& device) : device_(device), state_(std::make_shared<LateDevice::EventState>()) {}
  void record(Stream stream) override { device_.record(queue_of(stream), state_); }
  void wait() override { device_.wait_on_host(*state_); }
  const std::shared_ptr<LateDevice::EventState>& state() const { return state_; }

 private:
  LateDevice& device_;
  std::shared_ptr<LateDevice::EventState> state_;
};

class LateGraph final : public Graph {
 public:
  LateGraph(LateDevice& device, std::vector<std::pair<int, LateDevice::Op>> ops)
      : device_(device), ops_(std::move(ops)) {}
  void launch() override { device_.launch(ops_); }

 private:
  LateDevice& device_;
  std::vector<std::pair<int, LateDevice::Op>> ops_;
};

bool lies_in(const std::vector<LateDevice::Span>& spans, const void* data, size_t num_bytes) {
  const auto* begin = static_cast<const std::byte*>(data);
  return std::ranges::any_of(spans, [&](const LateDevice::Span& span) {
    return begin >= span.data && begin + num_bytes <= span.data + span.num_bytes;
  });
}

size_t sum(const std::vector<LateDevice::Span>& spans) {
  size_t total = 0;
  for (const LateDevice::Span& span : spans) total += span.num_bytes;
  return total;
}

void forget(std::vector<LateDevice::Span>& spans, const std::byte* data) {
  std::erase_if(spans, [&](const LateDevice::Span& span) { return span.data == data; });
}

}  // namespace

class LateRegion final : public Region {
 public:
  LateRegion(LateDevice& device, RegionTag tag, size_t num_bytes) : device_(device), tag_(tag), num_bytes_(num_bytes) {
    data_ = ::mmap(nullptr, num_bytes + 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    QUIRE_CHECK(data_ != MAP_FAILED);
    device_.regions_.push_back({data(), num_bytes});
  }
  ~LateRegion() override {
    forget(device_.regions_, data());
    ::munmap(data_, num_bytes_ + 1);
  }
  std::byte* data() const override { return static_cast<std::byte*>(data_); }
  size_t num_bytes() const override { return num_bytes_; }
  RegionTag tag() const override { return tag_; }
  bool resident() const override { return true; }
  void release() override { QUIRE_CHECK(false, "not needed here"); }
  void restore() override {}

 private:
  LateDevice& device_;
  RegionTag tag_;
  size_t num_bytes_;
  void* data_ = nullptr;
};

class LateBuffer final : public HostBuffer {
 public:
  LateBuffer(LateDevice& device, size_t num_bytes)
      : device_(device), num_bytes_(num_bytes), data_(new std::byte[num_bytes]) {
    device_.buffers_.push_back({data(), num_bytes});
  }
  ~LateBuffer() override { forget(device_.buffers_, data()); }
  std::byte* data() const override { return data_.get(); }
  size_t num_bytes() const override { return num_bytes_; }

 private:
  LateDevice& device_;
  size_t num_bytes_;
  std::unique_ptr<std::byte[]> data_;
};

// Device memory may be touched while one of these lives.
class LateDevice::Unprotected {
 public:
  explicit Unprotected(LateDevice& device) : device_(device) { set(PROT_READ | PROT_WRITE); }
  ~Unprotected() { set(PROT_NONE); }

 private:
  void set(int protection) {
    for (const Span& region : device_.regions_) {
      ::mprotect(const_cast<std::byte*>(region.data), region.num_bytes + 1, protection);
    }
  }
  LateDevice& device_;
};

LateDevice::LateDevice(Prefer prefer, const KernelTable* table)
    : host_(make_host_device({.num_threads = 1})),
      table_(table != nullptr ? table : &host_->kernels()),
      late_table_(*table_),
      prefer_(prefer) {
  for (Queue& queue : queues_) queue.device = this;
  late_table_.pack_weight = pack_late;
  late_table_.unpack_weight = unpack_late;
  late_table_.fill_dummy = fill_late;
  late_table_.embedding = launch_late<&KernelTable::embedding, EmbeddingParams>;
  late_table_.norm = launch_late<&KernelTable::norm, NormParams>;
  late_table_.gemm = launch_late<&KernelTable::gemm, GemmParams>;
  late_table_.rope_kv_write = launch_late<&KernelTable::rope_kv_write, RopeKvWriteParams>;
  late_table_.paged_attention = launch_late<&KernelTable::paged_attention, PagedAttentionParams>;
  late_table_.plan_attention = launch_late<&KernelTable::plan_attention, PagedAttentionParams>;
}

LateDevice::~LateDevice() = default;

Stream LateDevice::stream() const { return {&queues_[0]}; }
Stream LateDevice::copy_stream() const { return {&queues_[1]}; }

std::unique_ptr<Region> LateDevice::allocate(RegionTag tag, size_t num_bytes) {
  return std::make_unique<LateRegion>(*this, tag, num_bytes);
}

std::unique_ptr<HostBuffer> LateDevice::allocate_host(size_t num_bytes) {
  return std::make_unique<LateBuffer>(*this, num_bytes);
}

void LateDevice::copy_to_device(void* destination, const void* source, size_t num_bytes) {
  QUIRE_CHECK(is_device_memory(destination, num_bytes), "copy_to_device to host memory");
  require_no_capture("copy_to_device");
  run_until([&] { return queues_[0].ops.empty(); });
  const Unprotected unprotected(*this);
  std::memcpy(destination, source, num_bytes);
}

void LateDevice::copy_to_host(void* destination, const void* source, size_t num_bytes) {
  QUIRE_CHECK(is_device_memory(source, num_bytes), "copy_to_host from host memory");
  require_no_capture("copy_to_host");
  run_until([&] { return queues_[0].ops.empty(); });
  const Unprotected unprotected(*this);
  std::memcpy(destination, source, num_bytes);
}

void LateDevice::copy_async(void* destination, const void* source, size_t num_bytes, Stream stream) {
  int num_device = 0;
  for (const void* side : {static_cast<const void*>(destination), source}) {
    const bool on_device = is_device_memory(side, num_bytes);
    QUIRE_CHECK(on_device || lies_in(buffers_, side, num_bytes), "copy_async of memory that is no HostBuffer's");
    num_device += on_device ? 1 : 0;
  }
  QUIRE_CHECK(num_device > 0, "copy_async from host to host");
  ++num_copies_;
  push(queue_of(stream), [=] { std::memcpy(destination, source, num_bytes); });
}

void LateDevice::fill_async(void* destination, std::byte value, size_t num_bytes, Stream stream) {
  QUIRE_CHECK(is_device_memory(destination, num_bytes), "fill_async of host memory");
  push(queue_of(stream), [=] { std::memset(destination, static_cast<int>(value), num_bytes); });
}

std::unique_ptr<Event> LateDevice::make_event() { return std::make_unique<LateEvent>(*this); }

void LateDevice::push(Queue& queue, std::function<void()> work) {
  const int index = static_cast<int>(&queue - queues_);
  if (graph_ == nullptr) {
    queue.ops.push_back({.run = std::move(work)});
    return;
  }
  QUIRE_CHECK(queue.captured, "work on a stream that the capture has not forked to");
  ++queue.num_work;
  graph_->push_back({index, {.run = std::move(work)}});
}

void LateDevice::record(Queue& queue, const std::shared_ptr<EventState>& event) {
  const int index = static_cast<int>(&queue - queues_);
  const Op op = {.event = event, .is_record = true, .ticket = ++event->asked};
  event->capture = 0;
  if (graph_ == nullptr) {
    queue.ops.push_back(op);
    return;
  }
  QUIRE_CHECK(queue.captured, "an event recorded on a stream that the capture has not forked to");
  event->capture = num_captures_;
  event->queue = index;
  event->num_work = queue.num_work;
  graph_->push_back({index, op});
}

void LateDevice::wait_for(Stream stream, const Event& event) {
  const std::shared_ptr<EventState>& state = static_cast<const LateEvent&>(event).state();
  Queue& queue = queue_of(stream);
  const int index = static_cast<int>(&queue - queues_);
  if (state->asked == 0) return;
  const Op op = {.event = state, .ticket = state->asked};
  if (graph_ == nullptr) {
    QUIRE_CHECK(state->capture == 0, "a wait for an event of a capture");
    queue.ops.push_back(op);
    return;
  }
  if (state->capture != num_captures_) {
    QUIRE_CHECK(!queue.captured, "a captured stream waits for an event from outside of the capture");
    queue.ops.push_back(op);
    return;
  }
  queue.captured = true;
  Queue& recorded = queues_[state->queue];
  if (index == 0) recorded.num_joined = std::max(recorded.num_joined, state->num_work);
  graph_->push_back({index, op});
}

void LateDevice::wait_on_host(const EventState& event) {
  if (event.asked == 0) return;
  require_no_capture("Event::wait");
  QUIRE_CHECK(event.capture == 0, "Event::wait for an event of a capture");
  run_until([&] { return event.done >= event.asked; });
}

std::unique_ptr<Graph> LateDevice::capture(const std::function<void()>& body) {
  require_no_capture("capture");
  std::vector<std::pair<int, Op>> ops;
  ++num_captures_;
  for (Queue& queue : queues_) queue.captured = false, queue.num_work = queue.num_joined = 0;
  queues_[0].captured = true;
  graph_ = &ops;
  try {
    body();
  } catch (...) {
    graph_ = nullptr;
    throw;
  }
  graph_ = nullptr;
  QUIRE_CHECK(queues_[1].num_joined == queues_[1].num_work,
              "the capture ends with work that was not joined: ", queues_[1].num_work - queues_[1].num_joined, " of ",
              queues_[1].num_work);
  return std::make_unique<LateGraph>(*this, std::move(ops));
}

// Puts the captured work on the two queues again, with events of its own: nothing of it begins before the work that is
// there, and the compute queue goes on when it is done.
void LateDevice::launch(const std::vector<std::pair<int, Op>>& ops) {
  require_no_capture("Graph::launch");
  const auto begin = std::make_shared<EventState>();
  queues_[0].ops.push_back({.event = begin, .is_record = true, .ticket = 1});
  queues_[1].ops.push_back({.event = begin, .ticket = 1});
  std::vector<std::pair<const EventState*, std::shared_ptr<EventState>>> copies;
  for (const auto& [queue, op] : ops) {
    Op again = op;
    if (op.event != nullptr) {
      auto found = std::ranges::find(copies, op.event.get(), [](const auto& pair) { return pair.first; });
      if (found == copies.end()) {
        copies.emplace_back(op.event.get(), std::make_shared<EventState>());
        found = copies.end() - 1;
      }
      again.event = found->second;
    }
    queues_[queue].ops.push_back(again);
  }
}

bool LateDevice::runnable(const Queue& queue) const {
  if (queue.ops.empty()) return false;
  const Op& op = queue.ops.front();
  return op.run || op.is_record || op.event->done >= op.ticket;
}

void LateDevice::run_head(Queue& queue) {
  const Op op = std::move(queue.ops.front());
  queue.ops.pop_front();
  if (op.run) op.run();
  if (op.is_record) op.event->done = std::max(op.event->done, op.ticket);
}

void LateDevice::run_until(const std::function<bool()>& done) {
  const Unprotected unprotected(*this);
  while (!done()) {
    const bool copies_first =
        prefer_ == Prefer::copies || (prefer_ == Prefer::random && std::bernoulli_distribution()(random_));
    Queue& first = queues_[copies_first ? 1 : 0];
    Queue& second = queues_[copies_first ? 0 : 1];
    QUIRE_CHECK(runnable(first) || runnable(second), "the streams wait for each other");
    run_head(runnable(first) ? first : second);
  }
}

void LateDevice::require_no_capture(const char* what) const {
  QUIRE_CHECK(graph_ == nullptr, what, " during a capture");
}

void LateDevice::synchronize() {
  require_no_capture("synchronize");
  run_until([&] { return queues_[0].ops.empty() && queues_[1].ops.empty(); });
}

bool LateDevice::is_device_memory(const void* data, size_t num_bytes) const {
  return lies_in(regions_, data, num_bytes);
}
size_t LateDevice::region_bytes() const { return sum(regions_); }
size_t LateDevice::host_bytes() const { return sum(buffers_); }

}  // namespace quire::test
