//! Reads files in blocks: from the page cache at once, from the disk on a thread that may block.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// The size of a block, in bytes: a system call is cheap next to copying it, and a thousand slow clients fit in memory.
pub(crate) const BLOCK: usize = 128 * 1024;
/// The distance between the bytes that [`is_cached`] samples: the size of the kernel's read-ahead. Half of it would
/// cost a large hit three times as many system calls as sending it.
const SAMPLE_DISTANCE: usize = 128 * 1024;
/// The number of spare blocks, which save an allocation and fresh pages for each read.
const SPARE: usize = 64;

static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Reads up to `length` bytes (at most [`BLOCK`]) at `offset`; fewer only at the end of the file.
///
/// # Errors
/// `UnexpectedEof` if the file has no byte at `offset`.
pub(crate) async fn read(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut block = Block::with_length(length.min(BLOCK));
    block.filled = read_cached(file, block.wanted(), offset);
    if block.filled < block.length {
        let file = Arc::clone(file);
        let rest = move || block.read_blocking(&file, offset).map(|()| block);
        block = tokio::task::spawn_blocking(rest)
            .await
            .map_err(io::Error::other)??;
    }
    if block.filled == 0 && length > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(block.into_bytes())
}

/// Returns `true` if the page cache seems to hold the whole range. It samples a byte every few pages, because the
/// kernel caches and evicts larger parts. File systems without `RWF_NOWAIT` report `false`.
pub(crate) fn is_cached(file: &File, range: &Range<u64>) -> bool {
    let last = range.end.saturating_sub(1);
    let mut sampled = range.clone().step_by(SAMPLE_DISTANCE).chain([last]);
    sampled.all(|at| read_cached(file, &mut [0], at) == 1)
}

/// Removes bytes from the front of a chunk until `left` bytes are skipped.
pub(crate) fn skip(chunk: &mut Bytes, left: &mut u64) {
    let over = usize::try_from(*left).unwrap_or(usize::MAX).min(chunk.len());
    let _ = chunk.split_to(over);
    *left -= over as u64;
}

/// Returns the number of bytes that the page cache could supply without waiting; 0 on file systems without
/// `RWF_NOWAIT`.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    loop {
        match preadv2(
            file,
            &mut [IoSliceMut::new(buffer)],
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Err(Errno::INTR) => {}
            read => return read.unwrap_or(0),
        }
    }
}

/// A buffer of [`BLOCK`] bytes or fewer. A full-sized one returns to the pool when its last reader drops it.
struct Block {
    memory: Box<[u8]>,
    length: usize,
    filled: usize,
}

impl Block {
    fn with_length(length: usize) -> Self {
        let pooled = (length > BLOCK / 8).then(|| pool(Vec::pop).unwrap_or_else(|| vec![0; BLOCK].into()));
        Self {
            memory: pooled.unwrap_or_else(|| vec![0; length].into()),
            length,
            filled: 0,
        }
    }

    fn wanted(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }

    fn is_pooled(&self) -> bool {
        self.memory.len() == BLOCK
    }

    fn into_bytes(mut self) -> Bytes {
        if self.is_pooled() {
            return Bytes::from_owner(self);
        }
        let mut memory = Vec::from(std::mem::take(&mut self.memory));
        memory.truncate(self.filled);
        memory.into()
    }

    fn read_blocking(&mut self, file: &File, offset: u64) -> io::Result<()> {
        while self.filled < self.length {
            let at = offset + self.filled as u64;
            match file.read_at(&mut self.memory[self.filled..self.length], at) {
                Ok(0) => break,
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.filled]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.is_pooled() {
            let memory = std::mem::take(&mut self.memory);
            pool(|spare| {
                if spare.len() < SPARE {
                    spare.push(memory);
                }
            });
        }
    }
}

fn pool<T>(with: impl FnOnce(&mut Vec<Box<[u8]>>) -> T) -> T {
    with(&mut POOL.lock())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// The reader returns blocks up to the end of the file, and fails after it.
    #[tokio::test]
    async fn blocks_are_read_up_to_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..BLOCK + 100).map(|i| u8::try_from(i % 251).unwrap()).collect();
        file.write_all(&content).unwrap();
        let file = Arc::new(file);
        assert_eq!(read(&file, 0, BLOCK).await.unwrap(), &content[..BLOCK]);
        assert_eq!(read(&file, BLOCK as u64, BLOCK).await.unwrap(), &content[BLOCK..]);
        assert_eq!(read(&file, 7, 3).await.unwrap(), &content[7..10]);
        let past = read(&file, content.len() as u64, 1).await.unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// A block that is used again contains nothing of its earlier content.
    #[tokio::test]
    async fn reused_block_shows_no_old_content() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; BLOCK]).unwrap();
        let file = Arc::new(file);
        drop(read(&file, 0, BLOCK).await.unwrap());
        let short = read(&file, BLOCK as u64 - 5, BLOCK).await.unwrap();
        assert_eq!(short.as_ref(), [1; 5]);
    }
}
