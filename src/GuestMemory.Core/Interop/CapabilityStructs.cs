namespace GuestMemory.Core.Interop;

/// <summary><c>struct __user_cap_header_struct</c>: whose capabilities, and in which form.</summary>
internal struct UserCapHeader
{
    public uint version;
    public int pid;
}

/// <summary><c>struct __user_cap_data_struct</c>: 32 capabilities.</summary>
internal struct UserCapData
{
    public uint effective;
    public uint permitted;
    public uint inheritable;
}
