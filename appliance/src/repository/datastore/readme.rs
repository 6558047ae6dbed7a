//! The text that lies beside a replica, for a person who has the datastore and no vbr.

/// `README.txt`.
pub const TEXT: &str = "\
This directory is a replica of a virtual machine's disks, kept by vbr.
It can be used without vbr. Work on copies or overlays, never on these files:
a file that was changed fails its verification, and later restore points may
build upon it.

  replica.json            whose replica this is
  points/ID/point.json    one restore point: its disks, their exact lengths,
                          file names and formats
  points/ID/disk-N.raw    disk N as a raw image, or
  points/ID/disk-N.qcow2  disk N as a qcow2 overlay; the image below it is named
                          in its header and in point.json (\"backing\")
  points/ID/disk-N.manifest, pages/   checksums of every 64 KiB
  building/               a restore point that is not complete yet: do not use
  retiring/, retire.json  a removal in progress: start vbrd once to finish it

ID begins with the UTC time at which the point was sealed; the highest
\"sequence\" in point.json is the newest. A point with \"consistent\": false was
read from a disk that changed meanwhile.

To boot a restore point by hand, write to an overlay of your own:

  cd points/ID
  # FORMAT is \"image\" in point.json: raw or qcow2. Never let qemu guess it.
  qemu-img create -f qcow2 -F FORMAT -b \"$PWD/disk-0.FORMAT\" /var/tmp/test.qcow2
  qemu-system-x86_64 -m 2048 -drive file=/var/tmp/test.qcow2,format=qcow2

To copy a disk out as a raw image, cut to its exact length (\"disk_len\"):

  qemu-img convert -f FORMAT -O raw disk-0.FORMAT /path/out.raw
  truncate -s DISK_LEN /path/out.raw

The .json files end with a checksum of their own text. A file that was edited
by hand is shown as damaged; nothing is deleted because of that.
";
