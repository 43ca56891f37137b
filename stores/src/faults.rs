//! Mapped pages that the system cannot give: those of a file that was cut, or of a disk that fails.
//!
//! A read of such a page raises SIGBUS, which ends the process. A server of other models, or the interpreter that we are a guest in, must
//! outlive it. So a handler puts zeros in the place of the pages and notes the fault. The read goes on, and the store says
//! afterwards that what was read is not the file ([`Watched::fault`]). Faults of other memory go to the handler that was
//! there before.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::{io, ptr};

/// Mappings that are found without following a pointer.
const BLOCK: usize = 64;

/// That there was no fault.
const NONE: usize = usize::MAX;

/// The mappings that are watched. Blocks are added and never removed, so the handler can follow them at any time.
static WATCHED: Block = Block::new();

/// The handler that was there before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Bytes of a page.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// Some places for mappings, and the next ones.
struct Block {
    slots: [Slot; BLOCK],
    next: AtomicPtr<Block>,
}

/// A place for a mapping.
struct Slot {
    /// Whether the place is taken.
    is_taken: AtomicBool,
    /// Odd while the addresses are being written, so that the handler never sees one mapping's start with another's end.
    sequence: AtomicUsize,
    start: AtomicUsize,
    /// Behind the last page; equal to `start` in a place that is free.
    end: AtomicUsize,
    /// The first byte of the mapping that could not be read, [`NONE`] if there is none.
    fault: AtomicUsize,
}

/// A mapping whose missing pages read as zeros. It must be dropped before the memory is unmapped.
#[derive(Debug)]
pub(crate) struct Watched {
    slot: &'static Slot,
}

impl Watched {
    /// Watches the mapping at an address.
    ///
    /// # Errors
    /// If the handler cannot be installed.
    pub(crate) fn new(mapping: &[u8]) -> io::Result<Self> {
        install()?;
        let page = PAGE.load(Ordering::Relaxed);
        let start = mapping.as_ptr() as usize;
        let slot = WATCHED.take();
        slot.set(start, start + mapping.len().next_multiple_of(page));
        Ok(Self { slot })
    }

    /// The first byte of the mapping that could not be read, if there was one. What was read of the mapping from there on may
    /// be zeros.
    pub(crate) fn fault(&self) -> Option<usize> {
        Some(self.slot.fault.load(Ordering::SeqCst)).filter(|&fault| fault != NONE)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.slot.set(0, 0);
        self.slot.is_taken.store(false, Ordering::Release);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("start", &self.start).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Block {
    const fn new() -> Self {
        Self { slots: [const { Slot::new() }; BLOCK], next: AtomicPtr::new(ptr::null_mut()) }
    }

    /// A free place, in a new block where none is left.
    fn take(&'static self) -> &'static Slot {
        let mut block = self;
        loop {
            let free = |slot: &&Slot| {
                slot.is_taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
            };
            if let Some(slot) = block.slots.iter().find(free) {
                return slot;
            }
            block = block.next().unwrap_or_else(|| block.add());
        }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: the pointer is null, or from the box that `add` leaked, which nobody writes to but through atomics.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// The next block, a new one unless another thread was faster.
    fn add(&self) -> &'static Self {
        let new = Box::into_raw(Box::new(Self::new()));
        let null = ptr::null_mut();
        match self.next.compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the box was leaked above, and is never freed once it can be found.
            Ok(_) => unsafe { &*new },
            Err(found) => {
                // SAFETY: `new` is the box from above, which no other thread has seen; `found` is one that was leaked.
                unsafe {
                    drop(Box::from_raw(new));
                    &*found
                }
            }
        }
    }

    /// The mapping at an address.
    fn find(&'static self, address: usize) -> Option<&'static Slot> {
        let mut block = Some(self);
        while let Some(Block { slots, .. }) = block {
            if let Some(slot) = slots.iter().find(|slot| slot.covers(address)) {
                return Some(slot);
            }
            block = block.and_then(Block::next);
        }
        None
    }
}

impl Slot {
    const fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            fault: AtomicUsize::new(NONE),
        }
    }

    /// Writes the addresses of a mapping. Only the owner of the place does so.
    fn set(&self, start: usize, end: usize) {
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.fault.store(NONE, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// Whether an address is in the mapping. A place whose addresses are being written has none that a thread can read now: the
    /// mapping is not handed out yet, or nobody has it any more.
    fn covers(&self, address: usize) -> bool {
        let sequence = self.sequence.load(Ordering::Acquire);
        let range = self.start.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_settled = sequence.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == sequence;
        is_settled && range.contains(&address)
    }

    /// Puts zeros in the place of the pages of the mapping from that of an address on. False if the system refuses.
    fn fill(&self, address: usize) -> bool {
        let first = address - address % PAGE.load(Ordering::Relaxed);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        // Before the zeros can be read: a thread that sees them sees the fault.
        self.fault.fetch_min(first - start, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED;
        // SAFETY: the pages belong to the mapping of this place, which is alive because the thread that raised the signal reads
        // it, so no other memory is replaced. The mapping is read-only, and so are the zeros. They are unmapped with it.
        let mapped = unsafe { libc::mmap(first as *mut c_void, end - first, libc::PROT_READ, flags, -1, 0) };
        mapped != libc::MAP_FAILED
    }
}

/// Installs the handler, once a process.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let code = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
    let install = || {
        // SAFETY: a plain question to the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(|_| libc::EINVAL)?;
        PAGE.store(page, Ordering::Relaxed);
        let previous = action(None).map_err(code)?;
        PREVIOUS.get_or_init(|| previous);
        // SAFETY: all zeros are a valid value of the struct: no flags, no signals.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = on_bus_error as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
        // On the stack for signals, because some systems raise this signal where a stack ends.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action(Some(&ours)).map_err(code).map(drop)
    };
    INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)
}

/// Sets what the process does on SIGBUS, or only asks; gives what it did before.
fn action(new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: as above.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both pointers are to structs that live through the call, or null.
    match unsafe { libc::sigaction(libc::SIGBUS, new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler. It may interrupt any code, so it takes no lock, allocates nothing and calls nothing but `mmap`, `sigaction` and
/// `raise`, which are plain system calls.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands a handler with SA_SIGINFO a valid struct.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Codes of signals that a process sent are not positive, and they have no address.
    let is_fault = code > 0;
    if is_fault && WATCHED.find(address).is_some_and(|slot| slot.fill(address)) {
        return;
    }
    match PREVIOUS.get().map(|previous| (previous.sa_sigaction, previous.sa_flags)) {
        Some((libc::SIG_IGN, _)) if !is_fault => {}
        None | Some((libc::SIG_DFL | libc::SIG_IGN, _)) => {
            // SAFETY: all zeros are a valid value: the default action, no flags, no signals.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // If it fails, the fault comes again, and this handler with it: there is nothing else that it could do.
            let _ = action(Some(&default));
            if !is_fault {
                // SAFETY: it has no preconditions. The signal is delivered when this handler returns.
                unsafe { libc::raise(signal) };
            }
        }
        Some((handler, flags)) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: an action with this flag, that is not one of the two above, is a function of this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler as *const c_void) };
            handler(signal, info, context);
        }
        Some((handler, _)) => {
            // SAFETY: an action without the flag, that is not one of the two above, is a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler as *const c_void) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use memmap2::Mmap;

    use super::*;

    fn mapped(length: u64) -> (File, Mmap) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        // SAFETY: the test cuts the file, and the mapping is watched before it is read.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        (file, map)
    }

    #[test]
    fn missing_pages_read_as_zeros_and_are_known() {
        let (file, map) = mapped(100_000);
        let watched = Watched::new(&map).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 100_000], 0).unwrap();
        assert_eq!((map[99_999], watched.fault()), (7, None));
        file.set_len(10).unwrap();
        // What is left of the last page that the file has reads as zeros in any case.
        assert_eq!((map[9], map[99_999]), (7, 0));
        let fault = watched.fault().unwrap();
        assert!(fault > 10 && fault < 100_000 && fault.is_multiple_of(PAGE.load(Ordering::Relaxed)), "{fault}");
        assert_eq!(map[50_000], 0);
        assert!(watched.fault().unwrap() <= 50_000);
    }

    #[test]
    fn places_are_used_again_and_never_run_out() {
        let (_file, map) = mapped(10_000);
        let address = map.as_ptr() as usize;
        let watched: [Watched; 3 * BLOCK] = std::array::from_fn(|_| Watched::new(&map).unwrap());
        assert!(WATCHED.find(address).is_some() && WATCHED.find(address + 10_000).is_some());
        drop(watched);
        assert!(WATCHED.find(address).is_none());
        let again = Watched::new(&map).unwrap();
        assert_eq!(again.fault(), None);
    }

    /// Threads read a mapping while its file is cut, and others come and go.
    #[test]
    fn many_threads_outlive_a_file_that_is_cut() {
        let (file, map) = mapped(1 << 20);
        let watched = Watched::new(&map).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(map.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 0));
            }
            scope.spawn(|| (0..1000).for_each(|_| drop(Watched::new(&mapped(5000).1).unwrap())));
            file.set_len(0).unwrap();
        });
        assert!(map.iter().all(|&byte| byte == 0));
        assert_eq!(watched.fault(), Some(0));
    }
}
