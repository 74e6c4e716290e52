// Runs every registered test once per instruction set that is built and supported, each in a
// child process with FASTOPS_CPU_ISA set: the choice is made once per process, and a crash (an
// overread into a guard page, a sanitizer report) is then one failure with a name. As many run at
// once as there are processors.
//
//   fastops_native_tests [substring of a test name]
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "harness.h"

namespace fastops::test {
namespace {

struct Test {
  const char* name;
  TestFn fn;
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

int failures = 0;  // of the running test
const char* running_test = "";

// Runs in the child; its exit status says whether the test passed.
[[noreturn]] void run_child(const Test& test, cpu::Isa isa) {
  setenv("FASTOPS_CPU_ISA", cpu::name(isa), 1);
  running_test = test.name;
  try {
    test.fn();
  } catch (const std::exception& error) {
    std::printf("  %s threw: %s\n", test.name, error.what());
    ++failures;
  }
  std::fflush(nullptr);
  _exit(failures == 0 ? 0 : 1);
}

class Runner {
 public:
  explicit Runner(long most) : most_(size_t(most > 0 ? most : 1)) {}

  void start(const Test& test, cpu::Isa isa) {
    if (children_.size() == most_) finish_one();
    std::fflush(nullptr);
    const pid_t id = fork();
    if (id == 0) run_child(test, isa);
    if (id < 0) std::abort();
    children_.push_back({id, &test, isa});
  }

  // True where tests ran and all have passed.
  bool finish() {
    while (!children_.empty()) finish_one();
    std::printf("%d passed, %d failed\n", passed_, failed_);
    return failed_ == 0 && passed_ > 0;
  }

 private:
  struct Child {
    pid_t id;
    const Test* test;
    cpu::Isa isa;
  };

  void finish_one() {
    int status = 0;
    const pid_t id = wait(&status);
    if (id < 0) std::abort();
    size_t i = 0;
    while (children_.at(i).id != id) ++i;
    const Child done = children_[i];
    children_.erase(children_.begin() + long(i));
    const bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (WIFSIGNALED(status))
      std::printf("  %s: killed by signal %d\n", done.test->name, WTERMSIG(status));
    std::printf("%s %s: %s\n", cpu::name(done.isa), done.test->name, ok ? "ok" : "FAILED");
    ++(ok ? passed_ : failed_);
  }

  size_t most_;
  std::vector<Child> children_;
  int passed_ = 0, failed_ = 0;
};

}  // namespace

Registration::Registration(const char* name, TestFn fn) { tests().push_back({name, fn}); }

bool report(bool ok, const char* file, int line, const char* text) {
  constexpr int kShown = 5;
  if (!ok && ++failures <= kShown) {
    std::printf("  %s: %s:%d: %s\n", running_test, file, line, text);
    std::fflush(stdout);  // a crash later in the test must not swallow it
  }
  return ok;
}

GuardedBuffer::GuardedBuffer(size_t bytes, uint8_t fill, Place place, size_t offset)
    : bytes_(bytes), fill_(fill) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const size_t inside = (bytes + offset + page - 1) / page * page;
  mapped_ = inside + 2 * page;
  void* mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) std::abort();
  mapping_ = static_cast<uint8_t*>(mapping);
  // qemu-user refuses a protection change of no bytes, which Linux allows.
  if (inside > 0 && mprotect(mapping_ + page, inside, PROT_READ | PROT_WRITE) != 0) std::abort();
  std::memset(mapping_ + page, fill, inside);
  data_ = mapping_ + page + (place == Place::at_end ? inside - bytes : offset);
}

GuardedBuffer::GuardedBuffer(GuardedBuffer&& other) noexcept { *this = std::move(other); }

GuardedBuffer& GuardedBuffer::operator=(GuardedBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(fill_, other.fill_);
  return *this;
}

GuardedBuffer::~GuardedBuffer() {
  if (mapping_) munmap(mapping_, mapped_);
}

bool GuardedBuffer::margins_intact() const {
  if (!mapping_) return true;
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  bool intact = true;
  for (const uint8_t* p = mapping_ + page; p != data_; ++p) intact &= *p == fill_;
  for (const uint8_t* p = data_ + bytes_; p != mapping_ + mapped_ - page; ++p)
    intact &= *p == fill_;
  return intact;
}

}  // namespace fastops::test

int main(int argc, char** argv) {
  using namespace fastops;
  const char* wanted = argc > 1 ? argv[1] : "";
  test::Runner runner(sysconf(_SC_NPROCESSORS_ONLN));
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const cpu::Isa isa = static_cast<cpu::Isa>(i);
    if (!cpu::built(isa)) continue;
    if (!cpu::supported(isa)) {
      std::printf("%s: skipped, this CPU does not have it\n", cpu::name(isa));
      continue;
    }
    for (const auto& test : test::tests())
      if (std::strstr(test.name, wanted)) runner.start(test, isa);
  }
  return runner.finish() ? 0 : 1;
}
