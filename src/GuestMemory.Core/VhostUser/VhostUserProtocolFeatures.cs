namespace GuestMemory.Core.VhostUser;

/// <summary>The protocol features of vhost-user (VHOST_USER_PROTOCOL_F_...), as bits.</summary>
[Flags]
public enum VhostUserProtocolFeatures : ulong
{
    /// <summary>None.</summary>
    None = 0,
    /// <summary>Several queues: GET_QUEUE_NUM.</summary>
    Mq = 0x1,
    /// <summary>A dirty log in a file that comes as a descriptor: SET_LOG_BASE.</summary>
    LogShmfd = 0x2,
    /// <summary>SEND_RARP.</summary>
    Rarp = 0x4,
    /// <summary>The front end may ask for an answer to every request.</summary>
    ReplyAck = 0x8,
    /// <summary>NET_SET_MTU.</summary>
    Mtu = 0x10,
    /// <summary>Requests of the back end.</summary>
    BackendReq = 0x20,
    /// <summary>SET_VRING_ENDIAN.</summary>
    CrossEndian = 0x40,
    /// <summary>Sessions of a crypto device.</summary>
    CryptoSession = 0x80,
    /// <summary>Post-copy migration by userfaultfd.</summary>
    Pagefault = 0x100,
    /// <summary>GET_CONFIG and SET_CONFIG.</summary>
    Config = 0x200,
    /// <summary>Descriptors in requests of the back end.</summary>
    BackendSendFd = 0x400,
    /// <summary>Notifications of the guest that reach the back end directly.</summary>
    HostNotifier = 0x800,
    /// <summary>GET_INFLIGHT_FD and SET_INFLIGHT_FD.</summary>
    InflightShmfd = 0x1000,
    /// <summary>RESET_DEVICE.</summary>
    ResetDevice = 0x2000,
    /// <summary>Notifications as messages: VRING_KICK.</summary>
    InbandNotifications = 0x4000,
    /// <summary>Memory regions that come and go one by one: GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG.</summary>
    ConfigureMemSlots = 0x8000,
    /// <summary>SET_STATUS and GET_STATUS.</summary>
    Status = 0x10000,
    /// <summary>Memory regions of Xen.</summary>
    XenMmap = 0x20000,
    /// <summary>Objects that back ends share.</summary>
    SharedObject = 0x40000,
    /// <summary>The device's state in a migration.</summary>
    DeviceState = 0x80000,
    /// <summary>GET_VRING_BASE that tells what is in flight.</summary>
    GetVringBaseInflight = 0x100000,
    /// <summary>Shared memory regions of the device.</summary>
    Shmem = 0x200000,
}
