//! The socket file, who may use it, and whether somebody is still there.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ServeError;

/// Makes the socket: never open to others, not even for a moment, and in no place where others could exchange it.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    check_folder(&folder)?;
    let failed = |source| ServeError::System { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::InUse { path: path.to_owned(), reason: "is there and no socket" });
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => {
                return Err(ServeError::InUse {
                    path: path.to_owned(),
                    reason: "is served by another process",
                });
            }
            // Left behind by a process that was killed.
            Err(_) => fs::remove_file(path).map_err(failed)?,
        },
    }
    // The folder is ours alone, so nobody can connect between these steps.
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn check_folder(folder: &Path) -> Result<(), ServeError> {
    let wrong = |reason: String, next| ServeError::Folder { folder: folder.to_owned(), reason, next };
    let make = || fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let found = match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make().and_then(|()| fs::metadata(folder)),
        found => found,
    };
    let found = found.map_err(|error| wrong(error.to_string(), "name another folder"))?;
    if !found.is_dir() {
        return Err(wrong("is no folder".into(), "name another folder"));
    }
    if found.uid() != own_user() {
        return Err(wrong(format!("belongs to user {}", found.uid()), "name a folder of your own"));
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        let reason = format!("is open to others (mode {mode:03o})");
        return Err(wrong(
            reason,
            "make it private with chmod 700, or name a folder that does not exist yet",
        ));
    }
    Ok(())
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether the other end belongs to our user or to root, who may do anything anyway.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn is_ours(stream: &UnixStream) -> bool {
    let user = rustix::net::sockopt::socket_peercred(stream).map(|cred| cred.uid.as_raw());
    user.is_ok_and(|user| user == own_user() || user == 0)
}

/// Elsewhere the folder (0700) and the socket (0600) alone keep others out.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn is_ours(_stream: &UnixStream) -> bool {
    true
}

/// Whether the other end is gone, even if bytes of it wait to be read.
pub(crate) fn is_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An interrupted call says nothing: the next one will.
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_socket_is_private_and_only_a_stale_one_is_replaced() {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("a/b");
        let path = folder.join("pilot.sock");
        let first = bind(&path).expect("made with its folder");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((mode(&folder), mode(&path)), (0o700, 0o600));
        assert!(matches!(bind(&path), Err(ServeError::InUse { .. })), "served");
        drop(first);
        drop(bind(&path).expect("stale"));
        fs::remove_file(&path).expect("remove");
        fs::write(&path, "x").expect("a file");
        assert!(matches!(bind(&path), Err(ServeError::InUse { .. })), "a file is not removed");
        assert_eq!(fs::read(&path).expect("still there"), b"x");
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let root = tempfile::tempdir().expect("folder");
        fs::set_permissions(root.path(), Permissions::from_mode(0o750)).expect("chmod");
        let error = bind(&root.path().join("pilot.sock")).expect_err("refused").to_string();
        assert!(error.contains("750") && error.contains("chmod 700"), "{error}");
        let error = bind(&root.path().join("x").join("y".repeat(200))).expect_err("too long").to_string();
        assert!(error.contains("next:"), "{error}");
    }

    #[test]
    fn a_client_that_went_is_noticed_behind_its_last_bytes() {
        let (here, mut there) = UnixStream::pair().expect("pair");
        assert!(is_ours(&here), "our own process");
        there.write_all(b"last words").expect("write");
        assert!(!is_hung_up(&here));
        there.shutdown(std::net::Shutdown::Write).expect("half");
        assert!(!is_hung_up(&here), "it still reads");
        drop(there);
        assert!(is_hung_up(&here));
    }
}
