namespace GuestMemory.Core.Nbd;

/// <summary>The numbers of the NBD protocol, by their names there (doc/proto.md of NetworkBlockDevice). All are sent in big-endian order.</summary>
internal static class NbdProtocol
{
#pragma warning disable CA1707, SA1310, CS1591 // The names are those of the protocol.
    public const ulong NBDMAGIC = 0x4e42444d41474943;
    public const ulong IHAVEOPT = 0x49484156454f5054;
    public const ulong NBD_REP_MAGIC = 0x0003e889045565a9;
    public const uint NBD_REQUEST_MAGIC = 0x25609513;
    public const uint NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
    public const uint NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;

    public const ushort NBD_FLAG_FIXED_NEWSTYLE = 1;
    public const ushort NBD_FLAG_NO_ZEROES = 2;

    public const uint NBD_OPT_EXPORT_NAME = 1;
    public const uint NBD_OPT_ABORT = 2;
    public const uint NBD_OPT_LIST = 3;
    public const uint NBD_OPT_INFO = 6;
    public const uint NBD_OPT_GO = 7;
    public const uint NBD_OPT_STRUCTURED_REPLY = 8;
    public const uint NBD_OPT_LIST_META_CONTEXT = 9;
    public const uint NBD_OPT_SET_META_CONTEXT = 10;

    public const uint NBD_REP_ACK = 1;
    public const uint NBD_REP_SERVER = 2;
    public const uint NBD_REP_INFO = 3;
    public const uint NBD_REP_META_CONTEXT = 4;
    public const uint NBD_REP_ERR_UNSUP = 0x80000001;
    public const uint NBD_REP_ERR_INVALID = 0x80000003;
    public const uint NBD_REP_ERR_UNKNOWN = 0x80000006;
    public const uint NBD_REP_ERR_TOO_BIG = 0x80000009;

    public const ushort NBD_INFO_EXPORT = 0;
    public const ushort NBD_INFO_NAME = 1;
    public const ushort NBD_INFO_BLOCK_SIZE = 3;

    public const ushort NBD_FLAG_HAS_FLAGS = 1;
    public const ushort NBD_FLAG_READ_ONLY = 1 << 1;
    public const ushort NBD_FLAG_SEND_FLUSH = 1 << 2;
    public const ushort NBD_FLAG_SEND_DF = 1 << 7;
    public const ushort NBD_FLAG_CAN_MULTI_CONN = 1 << 8;

    public const ushort NBD_CMD_READ = 0;
    public const ushort NBD_CMD_WRITE = 1;
    public const ushort NBD_CMD_DISC = 2;
    public const ushort NBD_CMD_FLUSH = 3;
    public const ushort NBD_CMD_TRIM = 4;
    public const ushort NBD_CMD_WRITE_ZEROES = 6;
    public const ushort NBD_CMD_BLOCK_STATUS = 7;
    public const ushort NBD_CMD_FLAG_DF = 1 << 2;
    public const ushort NBD_CMD_FLAG_REQ_ONE = 1 << 3;

    public const ushort NBD_REPLY_FLAG_DONE = 1;
    public const ushort NBD_REPLY_TYPE_NONE = 0;
    public const ushort NBD_REPLY_TYPE_OFFSET_DATA = 1;
    public const ushort NBD_REPLY_TYPE_OFFSET_HOLE = 2;
    public const ushort NBD_REPLY_TYPE_BLOCK_STATUS = 5;
    public const ushort NBD_REPLY_TYPE_ERROR = 0x8001;

    public const uint NBD_STATE_HOLE = 1;
    public const uint NBD_STATE_ZERO = 2;

    public const uint NBD_EPERM = 1;
    public const uint NBD_EIO = 5;
    public const uint NBD_EINVAL = 22;
    public const uint NBD_EOVERFLOW = 75;
#pragma warning restore CA1707, SA1310, CS1591

    /// <summary>The longest name of an export, in bytes.</summary>
    public const int MaxName = 4096;

    /// <summary>The most that a request may read at once, and the most that is taken in of one that writes, in bytes.</summary>
    public const uint MaxRequest = 32 << 20;
}
