# Which of the library's tests run on the arm64 kernel, by the folder of their sources: of layouts, userfaultfd, memory, bitmaps and sockets
# as many as an emulated processor runs in two minutes. Without these:
# - tests of KVM, whose guests are x86-64, and of the parsers that are fuzzed, which are the same on every processor;
# - stress tests, and tests of what other threads see: QEMU orders memory as the processor that it runs on, so they show nothing of aarch64;
# - TouchTests: a touch of five microseconds counts as a fault, and here each takes as long;
# - Userfault/Hosting: the handler's program has tests of its own in init.
@{
    Classes = @{
        Addressing = 'AddressTests'
        Bitmaps    = 'AtomicBitmapTests', 'AtomicBitmapVectorTests', 'BitmapSliceTests', 'DirtyBitmapTests', 'ReplaceableLogTests'
        Images     = 'RawImageTests'
        Interop    = 'LayoutTests', 'ThreadProgressTests', 'UnixListenerTests'
        Memory     = 'GuestMemoryAccessVectorTests', 'GuestMemoryMmapTests', 'GuestMemoryRegionTests', 'MmapRegionBuilderTests', 'MmapRegionTests',
            'OtherMemoryTests', 'PermissionTests', 'RemovalTests', 'SandboxTests', 'SpanLeaseTests', 'VolatileSliceVectorTests'
        Userfault  = 'HandlerTests', 'HandoverTests', 'LayoutEventTests', 'MappingListTests', 'RecorderTests', 'SharedMemoryTests', 'TrackingTests'
        VmControl  = 'TubeTests', 'WireJsonTests'
        Xen        = 'XenMmapRegionTests', 'XenVectorTests'
    }
    # Methods of these, each for its reason.
    LeftOut = @{
        'HandlerTests.AVmThatEndsJustBeforeTheHandlerIsNotAbandoned' = 'a race, which is tried many times'
        'HandlerTests.RemovedPagesAreZeroUnderAStormOfFaults'        = 'a stress test'
        'HandlerTests.TwoHundredFiftySixRegionsAreHandedOver'        = 'takes half a minute here'
        'HandlerTests.TwoVmsAtOnceOnOneHandler'                      = 'thousands of faults'
        'ReplaceableLogTests.V6_11_NoMarkIsLostWhileLogsAreReplaced' = 'a stress test'
        'TrackingTests.NoWriteIsLostWhileMarksAreTaken'              = 'a stress test'
        'XenMmapRegionTests.NothingIsLeftOfManyRegions'              = 'hundreds of regions, one after the other'
    }
}
