//! The two calls that no library has.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_longlong, c_void};
use std::fs::File;
use std::io;

use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};

const BLKPG: Opcode = opcode::none(0x12, 105);
const BLKPG_RESIZE_PARTITION: c_int = 3;
const WDIOC_SETTIMEOUT: Opcode = opcode::read_write::<c_int>(b'W', 6);

/// `struct blkpg_partition`.
#[repr(C)]
struct Partition {
    start: c_longlong,
    length: c_longlong,
    number: c_int,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Argument {
    op: c_int,
    flags: c_int,
    length: c_int,
    data: *mut c_void,
}

/// Tells the kernel that a partition, which may be in use, has another size. In bytes.
pub fn resize_partition(disk: &File, number: u8, start: u64, length: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = Partition {
        start: c_longlong::try_from(start).map_err(too_large)?,
        length: c_longlong::try_from(length).map_err(too_large)?,
        number: number.into(),
        names: [0; 128],
    };
    let mut argument = Argument {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: size_of::<Partition>() as c_int,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: BLKPG takes a pointer to `struct blkpg_ioctl_arg`, which points to a `struct blkpg_partition`; both live
    // until the call is over and have the kernel's layout.
    unsafe { ioctl(disk, IntegerSetter::<BLKPG>::new_pointer((&raw mut argument).cast()))? };
    Ok(())
}

/// Sets a watchdog's time-out; the kernel says which one it took.
pub fn watchdog_timeout(device: &File, seconds: c_int) -> io::Result<c_int> {
    let mut value = seconds;
    // SAFETY: WDIOC_SETTIMEOUT reads an int and writes the one in use back.
    unsafe { ioctl(device, Updater::<WDIOC_SETTIMEOUT, c_int>::new(&mut value))? };
    Ok(value)
}
