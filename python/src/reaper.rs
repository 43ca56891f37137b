//! Where data of Python are let go of.
//!
//! Who gives back an array that another library lent may need Python's lock for it, as NumPy's buffers do. The engine's
//! threads drop arrays at any time, also when the thread that holds the lock waits for them. So arrays that were lent are
//! given back by a thread of their own, for which nobody ever waits.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use arrow::ffi::FFI_ArrowArray;
use pyo3::prelude::*;

/// To the thread, and the process that it was started in: a fork has none.
static REAPER: Mutex<Option<(u32, Sender<FFI_ArrowArray>)>> = Mutex::new(None);

/// The same array, which the reaper gives back when it is dropped.
pub(crate) fn released_elsewhere(array: FFI_ArrowArray) -> FFI_ArrowArray {
    let lent = Box::new(array);
    FFI_ArrowArray {
        length: lent.length,
        null_count: lent.null_count,
        offset: lent.offset,
        n_buffers: lent.n_buffers,
        n_children: lent.n_children,
        buffers: lent.buffers,
        children: lent.children,
        dictionary: lent.dictionary,
        release: Some(release),
        private_data: Box::into_raw(lent).cast::<c_void>(),
    }
}

unsafe extern "C" fn release(array: *mut FFI_ArrowArray) {
    // SAFETY: by the C data interface this is called once, with an array that `released_elsewhere` made, or was moved from
    // one; its private data are the box that went in there, and nobody reads the array's buffers any more.
    let lent = unsafe {
        let array = &mut *array;
        array.release = None;
        *Box::from_raw(array.private_data.cast::<FFI_ArrowArray>())
    };
    give_back(lent);
}

fn give_back(array: FFI_ArrowArray) {
    // Arrays that cannot be given back are kept: their memory is lost, and nothing else.
    let Ok(mut reaper) = REAPER.lock() else {
        std::mem::forget(array);
        return;
    };
    let process = std::process::id();
    if reaper.as_ref().is_none_or(|(started, _)| *started != process) {
        let (sender, arrays) = channel::<FFI_ArrowArray>();
        let reap = move || {
            for array in arrays {
                let array = ManuallyDrop::new(array);
                // After Python has ended there is nobody to give it back to.
                Python::try_attach(|_| drop(ManuallyDrop::into_inner(array)));
            }
        };
        if std::thread::Builder::new().name("arrow-quant-reaper".to_string()).spawn(reap).is_err() {
            std::mem::forget(array);
            return;
        }
        // The sender of another process' reaper is of no use here.
        std::mem::forget(reaper.replace((process, sender)));
    }
    if let Some((_, sender)) = &*reaper
        && let Err(unsent) = sender.send(array)
    {
        std::mem::forget(unsent.0);
    }
}
